"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): integers of 2 to 8 bits in groups of input columns.

`X.qweight` int32 is packed down the inputs, `[in · bits / 32, out]`, `X.qzeros` along the outputs,
`[groups, out · bits / 32]`, beside `X.scales` `[groups, out]` and `X.g_idx` `[in]`, the group of each input, in any
order where the checkpoint was made with desc_act. X.weight[o, i] = scales[g, o] · (q[i, o] - zero[g, o]), g = g_idx[i].
Version 1, which nearly all files have, stores zero - 1; `checkpoint_format: gptq_v2` stores zero.
"""

from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import need_shape, setting, size_of_groups
from .packing import by_rows, over_blocks, unpack
from .rounding import extremes, integer_grid, pack, to_fields
from .stored import Columns, Found, Stored

METHODS = ("gptq",)
WIDTHS = (2, 3, 4, 8)


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every packed matrix with what belongs to it; raises ConversionError where something is missing or misfits."""
    found, headers = Found(), checkpoint.headers
    bits, version = scheme.get("bits"), setting(scheme, "checkpoint_format", str, "gptq")
    if bits not in WIDTHS:
        raise ConversionError(f"the checkpoint is quantised (gptq) with bits={bits!r}: {WIDTHS} are read.")
    if version not in ("gptq", "gptq_v2"):
        raise ConversionError(f"checkpoint_format={version!r} is not read here: gptq and gptq_v2 are.")
    for name in headers:
        if name.endswith(".qweight"):
            found.tensors[name.replace(".qweight", ".weight")] = _stored(name, headers, scheme, bits, version)
    for name in headers.keys() - found.taken():
        if name.endswith((".qzeros", ".scales", ".g_idx")):
            raise ConversionError(f"{name!r} belongs to a packed weight that is not there: the checkpoint is damaged.")
    return found


def _stored(name: str, headers: dict[str, Tensor], scheme: dict[str, Any], bits: int, version: str) -> Stored:
    layer = name.removesuffix("qweight")
    names = [layer + part for part in ("qweight", "qzeros", "scales", "g_idx") if layer + part in headers]
    for part in ("qzeros", "scales"):
        if layer + part not in headers:
            raise ConversionError(f"{name!r} has no {layer + part!r}: the checkpoint is incomplete.")
    words, out = headers[name].shape
    groups, inputs = headers[layer + "scales"].shape[0], words * 32 // bits
    if headers[layer + "qzeros"].shape != (groups, ceil(out * bits / 32)) or headers[layer + "scales"].shape[1] != out:
        shapes = ", ".join(f"{one.removeprefix(layer)} {list(headers[one].shape)}" for one in names)
        raise ConversionError(f"the parts of {layer}weight do not fit each other at {bits} bits: {shapes}.")
    size, order = size_of_groups(scheme, "group_size", inputs), layer + "g_idx"
    if order in headers or scheme.get("desc_act"):
        need_shape(order, headers, layer + "weight", (inputs,))
    if ceil(inputs / size) != groups:
        raise ConversionError(f"{layer}scales has {groups} groups, group_size={size} makes {ceil(inputs / size)}.")
    options = {"bits": bits, "size": size, "shift": 1 if version == "gptq" else 0}
    encoded = partial(encode, **options, symmetric=bool(scheme.get("sym", True)))
    rows = partial(_columns, bits=bits, ordered=len(names) > 3)
    return Stored(tuple(names), (out, inputs), partial(decode, **options), encoded, rows, unit=32)


def _columns(start: int, stop: int, bits: int, ordered: bool) -> tuple[Columns | None, ...]:
    """The outputs `start` to `stop`, of which 32 are in whole words."""
    outputs, words = Columns(start, stop), Columns(start * bits // 32, ceil(stop * bits / 32))
    return (outputs, words, outputs, None) if ordered else (outputs, words, outputs)


def decode(
    dtype: torch.dtype,
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None = None,
    *,
    bits: int,
    size: int,
    shift: int,
) -> Tensor:
    """scales · (q - zero), `[out, in]`."""
    out, inputs = qweight.shape[1], qweight.shape[0] * 32 // bits
    zeros = (unpack(qzeros, bits, out) + shift) & (2**bits - 1)
    grids = [grid.float().T.contiguous() for grid in (scales, zeros)]
    factors, zeros = (over_blocks(grid, (1, size), inputs, g_idx) for grid in grids)
    rows = qweight.T.contiguous()
    return by_rows(dtype, (out, inputs), lambda part: unpack(rows[part], bits, inputs), factors, zeros)


def encode(
    weight: Tensor,
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None = None,
    *,
    bits: int,
    size: int,
    shift: int,
    symmetric: bool,
) -> tuple[Tensor, ...]:
    """The weight in the same groups, rounded to the nearest: GPTQ's own rounding needs data."""
    block = (1, size)
    scale, zero = integer_grid(*extremes(weight, block, g_idx), bits, symmetric, scales.dtype)
    fields = to_fields(weight, scale, zero, block, bits, g_idx)
    zeros = (zero.T - shift) & (2**bits - 1)
    parts = (pack(fields, bits).T.contiguous(), pack(zeros, bits), scale.T.contiguous())
    return parts if g_idx is None else (*parts, g_idx)
