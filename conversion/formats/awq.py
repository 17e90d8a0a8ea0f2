"""AWQ (Lin et al. 2023, arXiv 2306.00978), layout "gemm": integers of 4 bits in groups of input columns.

`X.qweight` int32 `[in, out / 8]`, `X.qzeros` `[groups, out / 8]`, `X.scales` `[groups, out]`: within a word, field k
holds output (0, 2, 4, 6, 1, 3, 5, 7)[k]. X.weight[o, i] = (q[i, o] - zero[g, o]) · scales[g, o], g = i // group_size.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import size_of_groups
from .packing import by_rows, over_blocks, unpack
from .rounding import extremes, integer_grid, pack, to_fields
from .stored import Columns, Found, Stored

METHODS = ("awq",)


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every packed matrix with what belongs to it; raises ConversionError where something is missing or misfits."""
    found, headers = Found(), checkpoint.headers
    bits = scheme.get("bits", scheme.get("w_bit", 4))
    version = str(scheme.get("version", scheme.get("format", "gemm"))).lower()
    if bits != 4 or version != "gemm":
        raise ConversionError(
            f"the checkpoint is quantised (awq) with {bits} bits in layout {version!r}: 4 bits in 'gemm' are read."
        )
    for name in headers:
        if name.endswith(".qweight"):
            layer = name.removesuffix("qweight")
            names = (name, layer + "qzeros", layer + "scales")
            if missing := [part for part in names if part not in headers]:
                raise ConversionError(f"{name!r} has no {missing[0]!r}: the checkpoint is incomplete.")
            (inputs, words), groups = headers[name].shape, headers[names[1]].shape[0]
            if headers[names[1]].shape != (groups, words) or headers[names[2]].shape != (groups, 8 * words):
                shapes = ", ".join(f"{part.removeprefix(layer)} {list(headers[part].shape)}" for part in names)
                raise ConversionError(f"the parts of {layer}weight do not fit each other: {shapes}.")
            key = "group_size" if "group_size" in scheme else "q_group_size"
            if (size := size_of_groups(scheme, key, -(-inputs // groups))) and -(-inputs // size) != groups:
                wanted = f"{key}={size} makes {-(-inputs // size)}"
                raise ConversionError(f"{names[2]!r} has {groups} groups of {inputs} inputs, {wanted}.")
            found.tensors[layer + "weight"] = Stored(names, (8 * words, inputs), decode, encode, _columns, unit=8)
    for name in headers.keys() - found.taken():
        if name.endswith((".qzeros", ".scales")):
            raise ConversionError(f"{name!r} belongs to a packed weight that is not there: the checkpoint is damaged.")
    return found


def _columns(start: int, stop: int) -> tuple[Columns, ...]:
    """The outputs `start` to `stop`, of which eight are in a word."""
    return Columns(start // 8, -(-stop // 8)), Columns(start // 8, -(-stop // 8)), Columns(start, stop)


def outputs(words: Tensor) -> Tensor:
    """`[n, out / 8]` words -> `[n, out]` numbers in the order of the outputs."""
    fields = unpack(words, 4, 8 * words.shape[1]).view(len(words), -1, 2, 4)
    return fields.transpose(2, 3).flatten(1)  # the even ones of eight lie first


def decode(dtype: torch.dtype, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """(q - zero) · scales, `[out, in]`."""
    inputs, out = len(qweight), 8 * qweight.shape[1]
    size = -(-inputs // len(scales))
    grids = [grid.float() for grid in (scales, outputs(qzeros))]
    by_input = by_rows(
        dtype,
        (inputs, out),
        lambda part: outputs(qweight[part]),
        over_blocks(grids[0], (size, 1), out),
        over_blocks(grids[1], (size, 1), out),
    )
    return by_input.T.contiguous()


def as_words(numbers: Tensor) -> Tensor:
    """`[n, out]` numbers -> `[n, out / 8]` words, the even ones of eight first."""
    return pack(numbers.view(len(numbers), -1, 4, 2).transpose(2, 3).flatten(1), 4)


def encode(weight: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
    """The weight in groups of as many inputs, rounded to the nearest: AWQ's own scaling needs data."""
    block = (1, -(-len(qweight) // len(scales)))
    scale, zero = integer_grid(*extremes(weight, block), 4, False, scales.dtype)
    fields = to_fields(weight, scale, zero, block, 4)
    return as_words(fields.T.contiguous()), as_words(zero.T.contiguous()), scale.T.contiguous()
