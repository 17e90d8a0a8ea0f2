"""torchao, weights of eight bits: `X._weight_qdata` int8 `[out, in]`, `X._weight_scale` and `X._weight_zero_point`
`[out, 1]` stand for X.weight = (q - zero point) · scale."""

from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import need_shape
from .packing import by_rows, over_blocks
from .rounding import extremes, integer_grid, to_fields
from .stored import Found, Stored, rows_alike

METHODS = ("torchao",)
_DATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every packed matrix with what belongs to it; raises ConversionError where something is missing or misfits."""
    found, headers = Found(), checkpoint.headers
    for name, tensor in headers.items():
        if name.endswith(_DATA):
            layer = name.removesuffix(_DATA)
            names = tuple(layer + part for part in (_DATA, _SCALE, _ZERO) if layer + part in headers)
            scales = headers.get(layer + _SCALE)
            if tensor.dtype != torch.int8 or scales is None or scales.shape != (tensor.shape[0], 1):
                raise ConversionError(f"{name!r} is not int8 with a scale per row, which is what is read of torchao.")
            if layer + _ZERO in headers:
                need_shape(layer + _ZERO, headers, layer + "weight", tuple(scales.shape))
            found.tensors[layer + "weight"] = Stored(names, tuple(tensor.shape), decode, encode, rows_alike(len(names)))
    for name in headers.keys() - found.taken():
        if name.endswith((_SCALE, _ZERO)):
            raise ConversionError(f"{name!r} belongs to a packed weight that is not there: the checkpoint is damaged.")
    return found


def decode(dtype: torch.dtype, weight: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(q - zero point) · scale, `[out, in]`."""
    factors = over_blocks(scale.float(), (1, 1), weight.shape[1])
    zeros = None if zero is None else over_blocks(zero.float(), (1, 1), weight.shape[1])
    return by_rows(dtype, tuple(weight.shape), weight.__getitem__, factors, zeros)


def encode(weight: Tensor, old: Tensor, old_scale: Tensor, old_zero: Tensor | None = None) -> tuple[Tensor, ...]:
    """Integers with a scale per row, around zero."""
    block = (1, weight.shape[1])
    scale, zero = integer_grid(*extremes(weight, block), 8, True, old_scale.dtype)
    q = (to_fields(weight, scale, zero, block, 8).short() - 128).to(old.dtype)
    return (q, scale) if old_zero is None else (q, scale, torch.zeros_like(old_zero))
