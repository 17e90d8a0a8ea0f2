"""compressed-tensors (Red Hat's and Moonshot's checkpoints): each group of layers in a scheme of its own.

W = (q - zero point) · scale, in which `X_scale` has one number for the tensor, a row, a group of columns or a block:
- `X` in eight bits, floats or integers (`X_zero_point` beside asymmetric ones; bytes as scales are exponents);
- `X_packed` words of 1 to 8 bits with `X_shape`: q = field - 2 ** (bits - 1); zero points are packed down the rows;
  `X_g_idx` names the group of each column;
- `X_packed` bytes of two floats: scales in bytes are exponents (MXFP4), others are divided by `X_global_scale` (NVFP4).
"""

import re
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import need_shape, setting, size_of_groups
from .fp8 import FLOAT8, UNUSED, block_of, stored
from .packing import as_factors, by_rows, e2m1, over_blocks, unpack
from .rounding import extremes, integer_grid, mxfp4, nvfp4, pack, to_fields
from .stored import Found, Stored, rows_alike

METHODS = ("compressed-tensors",)
PACKED, SCALE = "_packed", "_scale"
# Beside a weight: what belongs to it.
_BESIDE = (PACKED, SCALE, "_shape", "_zero_point", "_g_idx", "_global_scale")
_UNUSED = (*UNUSED, "input_zero_point", "output_zero_point", "input_global_scale", "k_zero_point", "v_zero_point")


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every weight that a scale belongs to; raises ConversionError where something of it is missing or misfits."""
    sparsity = setting(scheme, "sparsity_config", dict, {}).get("format", "dense")
    if sparsity != "dense":
        raise ConversionError(f"the checkpoint is stored as {sparsity!r}, which is not read here: decompress it first.")
    found, headers = Found(), checkpoint.headers
    for name, tensor in headers.items():
        if name.endswith(PACKED):
            base = name.removesuffix(PACKED)
            read = packed_floats if tensor.dtype == torch.uint8 else packed_integers
            found.tensors[base] = read(base, checkpoint, scheme)
        elif tensor.dtype in (*FLOAT8, torch.int8) and name + SCALE in headers:
            found.tensors[name] = eight_bits(name, checkpoint, scheme)
    known = {name + ending for name in found.tensors for ending in ("_shape", "_zero_point")}
    for name in headers.keys() - found.taken():
        if name.endswith(_UNUSED) or name in known:
            found.unused.add(name)
        elif "weight" in name and name.endswith(_BESIDE):
            raise ConversionError(f"{name!r} belongs to a packed weight that is not there: the checkpoint is damaged.")
    return found


def eight_bits(name: str, checkpoint: StoredTensors, scheme: dict[str, Any]) -> Stored:
    """`X` and `X_scale`, maybe `X_zero_point`."""
    headers, settings = checkpoint.headers, settings_of(name, scheme)
    weight, scale, zero = headers[name], headers[name + SCALE], name + "_zero_point"
    group = size_of_groups(settings, "group_size", 0)
    block = setting(settings, "block_structure", list) or ([1, group] if group else None)
    block = block_of(name, weight, name + SCALE, scale, block)
    names = (name, name + SCALE)
    if weight.dtype in FLOAT8 or setting(settings, "symmetric", bool, True):
        return stored(*names, tuple(weight.shape), block)
    need_shape(zero, headers, name, tuple(scale.shape))
    ways = (partial(decode_shifted, block=block), partial(encode_shifted, block=block))
    unit = 1 if block is None else block[0]
    rows = partial(_rows_of_blocks, high=weight.shape[0] if block is None else unit, whole=block is None)
    return Stored((*names, zero), tuple(weight.shape), *ways, rows, unit)


def _rows_of_blocks(start: int, stop: int, high: int, whole: bool) -> tuple[tuple[int, int] | None, ...]:
    """The rows of the integers, and those of scales and zero points; None where all have one."""
    grid = None if whole else (start // high, ceil(stop / high))
    return (start, stop), grid, grid


def decode_shifted(dtype: torch.dtype, weight: Tensor, scale: Tensor, zero: Tensor, block: Any) -> Tensor:
    """(q - zero point) · scale of integers `[rows, columns]`."""
    rows, columns = weight.shape
    block = block or (rows, columns)
    grids = [tensor.float().reshape(ceil(rows / block[0]), -1) for tensor in (scale, zero)]
    factors, zeros = (over_blocks(grid, block, columns) for grid in grids)
    return by_rows(dtype, (rows, columns), weight.__getitem__, factors, zeros)


def encode_shifted(
    weight: Tensor, old: Tensor, old_scale: Tensor, old_zero: Tensor, block: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, their scales and zero points."""
    block = block or tuple(weight.shape)
    scale, zero = integer_grid(*extremes(weight, block), 8, False, old_scale.dtype)
    q = (to_fields(weight, scale, zero, block, 8).short() - 128).to(old.dtype)
    return q, scale.view(old_scale.shape), (zero - 128).to(old_zero.dtype).view(old_zero.shape)


def packed_integers(name: str, checkpoint: StoredTensors, scheme: dict[str, Any]) -> Stored:
    """`X_packed` words, `X_scale`, `X_shape`, maybe `X_zero_point` and `X_g_idx`. Raises ConversionError where their
    shapes do not fit."""
    headers, settings = checkpoint.headers, settings_of(name, scheme)
    _need(name, headers, SCALE, "_shape")
    bits, shape = settings.get("num_bits"), tuple(checkpoint.read(name + "_shape").tolist())
    packed, scale = headers[name + PACKED], headers[name + SCALE]
    if len(shape) != 2 or not isinstance(bits, int) or tuple(packed.shape) != (shape[0], ceil(shape[1] * bits / 32)):
        raise ConversionError(
            f"{name + PACKED!r} is {list(packed.shape)}, which is not how {list(shape)} of {bits} bits are packed."
        )
    rows, groups = scale.shape if scale.dim() == 2 else (scale.numel(), 1)
    size = size_of_groups(settings, "group_size", ceil(shape[1] / groups))
    if rows not in (1, shape[0]) or ceil(shape[1] / size) != groups:
        wanted = f"{list(shape)} in groups of {size}"
        raise ConversionError(f"{name + SCALE!r} is {list(scale.shape)}, which does not fit {wanted}.")
    beside = [ending for ending in ("_zero_point", "_g_idx") if name + ending in headers]
    if not setting(settings, "symmetric", bool, True) or "_zero_point" in beside:
        packed_down = (ceil(rows * bits / 32), groups)
        need_shape(name + "_zero_point", headers, name, packed_down, tuple(scale.shape))
    if "_g_idx" in beside:
        need_shape(name + "_g_idx", headers, name, (shape[1],))
    names = (name + PACKED, name + SCALE, *(name + ending for ending in beside))
    how = {"bits": bits, "shape": shape, "size": size, "beside": beside}
    symmetric = setting(settings, "symmetric", bool, True)
    ways = (partial(decode_integers, **how), partial(encode_integers, **how, symmetric=symmetric))

    def rows_of(start: int, stop: int) -> tuple[tuple[int, int] | None, ...]:
        some = (start, stop) if rows == shape[0] else None
        words = (start * bits // 32, ceil(stop * bits / 32))
        down = words if headers.get(name + "_zero_point", scale).dtype == torch.int32 else some
        zero = down if some else None
        return (start, stop), some, *({"_zero_point": zero, "_g_idx": None}[ending] for ending in beside)

    return Stored(names, shape, *ways, rows_of, unit=32)


def decode_integers(
    dtype: torch.dtype, packed: Tensor, scale: Tensor, *others: Tensor, bits: int, shape: tuple, size: int, beside: list
) -> Tensor:
    """(field - 2 ** (bits - 1) - zero point) · scale."""
    given, middle = dict(zip(beside, others, strict=True)), 2 ** (bits - 1)
    shape = (len(packed), shape[1])  # of some rows
    grid = scale.float().reshape(-1, ceil(shape[1] / size))
    block = (1 if len(grid) == shape[0] else shape[0], size)
    zero, group_of = given.get("_zero_point"), given.get("_g_idx")
    if group_of is not None and bool((group_of < 0).any()):
        group_of = None  # initialised, but not used
    zeros, whole = torch.full((1, 1), float(middle)), (shape, shape[1])
    if zero is not None:
        # Packed fields of their own, whose middle is taken from both: what is left is field - field.
        packed_down = zero.dtype == torch.int32
        zeros = unpack(zero.T.contiguous(), bits, len(grid)).T if packed_down else zero.reshape(grid.shape) + middle
        whole = (block, shape[1], group_of)
    factors, zeros = over_blocks(grid, block, shape[1], group_of), over_blocks(zeros.float(), *whole)
    return by_rows(dtype, shape, lambda part: unpack(packed[part], bits, shape[1]), factors, zeros)


def encode_integers(
    weight: Tensor,
    packed: Tensor,
    old_scale: Tensor,
    *others: Tensor,
    bits: int,
    shape: tuple,
    size: int,
    beside: list,
    symmetric: bool,
) -> tuple[Tensor, ...]:
    """The weight in the same groups, its zero points among fields where the old ones are."""
    given = dict(zip(beside, others, strict=True))
    group_of = given.get("_g_idx")
    if group_of is not None and bool((group_of < 0).any()):
        group_of = None
    single = old_scale.numel() == ceil(shape[1] / size) and shape[0] > 1
    block = (shape[0] if single else 1, size)
    scale, zero = integer_grid(*extremes(weight, block, group_of), bits, symmetric, old_scale.dtype)
    fields = to_fields(weight, scale, zero, block, bits, group_of)
    if (old := given.get("_zero_point")) is not None:
        down = old.dtype == torch.int32
        given["_zero_point"] = pack(zero.T.contiguous(), bits).T if down else (zero - 2 ** (bits - 1)).to(old.dtype)
        given["_zero_point"] = given["_zero_point"].reshape(old.shape)
    return pack(fields, bits), scale.view(old_scale.shape), *given.values()


def packed_floats(name: str, checkpoint: StoredTensors, scheme: dict[str, Any]) -> Stored:
    """`X_packed` bytes and `X_scale`, of NVFP4 `X_global_scale` too. Raises ConversionError where their shapes do not
    fit."""
    headers = checkpoint.headers
    _need(name, headers, SCALE)
    packed, scale = headers[name + PACKED], headers[name + SCALE]
    *lead, half = packed.shape
    nvfp4 = scale.dtype not in (torch.uint8, torch.float8_e8m0fnu)
    need_shape(name + SCALE, headers, name, (*lead, 2 * half // (16 if nvfp4 else 32)))
    if nvfp4:
        _need(name, headers, "_global_scale")
    names = [name + ending for ending in (PACKED, SCALE, "_global_scale") if name + ending in headers]
    whole = headers.get(name + "_global_scale", scale)
    rows = None if nvfp4 and whole.numel() > 1 else rows_alike(2, len(names) - 2)
    return Stored(tuple(names), (*lead, 2 * half), decode_floats, encode_floats, rows)


def decode_floats(dtype: torch.dtype, packed: Tensor, scale: Tensor, whole: Tensor | None = None) -> Tensor:
    """e2m1 · scale, or · scale / global scale."""
    factors = as_factors(scale)
    factors = factors if whole is None else factors / whole.float()
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    flat, grid = packed.flatten(0, -2), factors.flatten(0, -2)
    block = (1, shape[-1] // grid.shape[-1])
    return by_rows(
        dtype, (len(flat), shape[-1]), lambda part: e2m1(flat[part]), over_blocks(grid, block, shape[-1])
    ).view(shape)


def encode_floats(weight: Tensor, packed: Tensor, old_scale: Tensor, whole: Tensor | None = None) -> tuple[Tensor, ...]:
    """Two numbers a byte, their scales, and the number that these are divided by. Raises ConversionError for several
    of them."""
    if whole is None:
        return mxfp4(weight, old_scale)
    if whole.numel() > 1:
        raise ConversionError(f"it has {whole.numel()} global scales.")
    codes, scale, factor = nvfp4(weight)
    return codes, scale.to(old_scale.dtype), (1 / factor).to(whole.dtype).view(whole.shape)


def settings_of(name: str, scheme: dict[str, Any]) -> dict[str, Any]:
    """What the scheme says of the weights of one tensor: of the group whose targets name its layer, by name or pattern,
    else of the group of its kind of layer. Raises ConversionError where no group names it."""
    layer, kinds = name.removesuffix(".weight"), []
    groups = setting(scheme, "config_groups", dict, {})
    for one in groups:
        group = setting(groups, one, dict, {})
        settings = setting(group, "weights", dict, {})
        for target in setting(group, "targets", list, []):
            if _names(target, layer):
                return settings
            if not target.startswith("re:") and "." not in target:
                kinds.append(settings)
    if not kinds:
        raise ConversionError(
            f"config.json says of no group (config_groups) that it packs {layer!r}, but it is packed."
        )
    return kinds[0]


def _names(target: str, layer: str) -> bool:
    """Whether a target is the name of a layer, or a pattern of it. Raises ConversionError for one that is neither."""
    if not isinstance(target, str):
        raise ConversionError(f"quantization_config has a target {target!r}, which must be a word.")
    try:
        return bool(re.match(target[3:], layer)) if target.startswith("re:") else f".{layer}".endswith("." + target)
    except re.error as error:
        raise ConversionError(f"quantization_config has a target {target!r}, which is no pattern: {error}.") from error


def _need(name: str, headers: dict[str, Tensor], *endings: str) -> None:
    for ending in endings:
        if name + ending not in headers:
            raise ConversionError(f"{name!r} is packed and has no {name + ending!r}: the checkpoint is incomplete.")
