"""NVIDIA's ModelOpt: FP8 with one scale a matrix, and NVFP4, floats of four bits with two scales.

NVFP4: `X.weight` bytes `[out, in / 2]`, two numbers each, the low half first; `X.weight_scale` FP8, one for 16 numbers;
`X.weight_scale_2` one for all. W = e2m1 · weight_scale · weight_scale_2, which compressed-tensors divides by.
"""

from typing import Any

import torch

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from . import fp8
from .compressed_tensors import decode_floats
from .rounding import nvfp4
from .stored import Found, Stored, rows_alike

METHODS = ("modelopt", "modelopt_fp4")
_SCALE, _SECOND = "_scale", "_scale_2"


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every packed weight with its scales; raises ConversionError where one is missing or misfits."""
    headers = checkpoint.headers
    twice = {name: tensor for name, tensor in headers.items() if name + _SECOND in headers}
    found = Found()
    for name, tensor in twice.items():
        scale = headers.get(name + _SCALE)
        if scale is None or tensor.dtype != torch.uint8 or scale.dtype not in fp8.FLOAT8:
            raise ConversionError(f"{name + _SECOND!r} belongs to floats of four bits and a scale in FP8, not to this.")
        if scale.shape[:-1] != tensor.shape[:-1] or 2 * tensor.shape[-1] != 16 * scale.shape[-1]:
            shapes = f"{list(scale.shape)} beside {list(tensor.shape)} bytes of two numbers"
            raise ConversionError(f"{name + _SCALE!r} is {shapes}: one belongs to 16 numbers.")
        shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
        found.tensors[name] = Stored((name, name + _SCALE, name + _SECOND), shape, decode, encode, rows_alike(2, 1))
    rest = StoredTensors(checkpoint.folder)
    rest.headers = {name: tensor for name, tensor in headers.items() if name not in found.taken()}
    others = fp8.find(rest, scheme)
    return Found(found.tensors | others.tensors, others.unused)


def decode(dtype: torch.dtype, packed: torch.Tensor, scale: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """e2m1 · weight_scale · weight_scale_2."""
    return decode_floats(dtype, packed, scale.float() * second.float())


def encode(
    weight: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Two numbers a byte, their scales, and the scale of all."""
    codes, scales, whole = nvfp4(weight)
    return codes, scales.to(scale.dtype), whole.to(second.dtype).view(second.shape)
