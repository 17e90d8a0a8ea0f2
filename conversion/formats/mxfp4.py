"""MXFP4 as gpt-oss has it: experts in floats of four bits, 32 of which share a scale that is a power of two.

`X_blocks` bytes `[E, out, in / 32, 16]` and `X_scales` `[E, out, in / 32]` -> X `[E, in, out]`, value = e2m1(half of a
byte, the low one first) · 2 ** (scale - 127) (OCP Microscaling Formats, 2023). Exact in bfloat16.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .packing import as_factors, e2m1, exponents, largest_in_blocks, parts_of, to_e2m1
from .stored import Found, Stored, rows_alike

METHODS = ("mxfp4",)
_BLOCKS, _SCALES = "_blocks", "_scales"


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every pair of blocks and scales; raises ConversionError where one is missing or they do not fit."""
    found, headers = Found(), checkpoint.headers
    for name in headers:
        if name.endswith(_BLOCKS) and headers[name].dtype == torch.uint8:
            base = name.removesuffix(_BLOCKS)
            blocks, scales = headers[name], headers.get(base + _SCALES)
            if scales is None:
                raise ConversionError(f"{name!r} has no scales ({base + _SCALES}): the checkpoint is incomplete.")
            if blocks.dim() != 4 or blocks.shape[-1] != 16 or blocks.shape[:-1] != scales.shape:
                shapes = f"{list(blocks.shape)} beside {base + _SCALES!r} of {list(scales.shape)}"
                raise ConversionError(f"{name!r} is {shapes}: 16 bytes belong to each scale.")
            experts, out, groups, _ = blocks.shape
            shape = (experts, groups * 32, out)
            found.tensors[base] = Stored((name, base + _SCALES), shape, decode, encode, rows_alike(2))
    for name in headers.keys() - found.taken():
        if name.endswith(_SCALES) and headers[name].dtype == torch.uint8:
            raise ConversionError(f"{name!r} are scales without blocks: the checkpoint is incomplete.")
    return found


def decode(dtype: torch.dtype, blocks: Tensor, scales: Tensor) -> Tensor:
    """`[E, out, G, 16]` and `[E, out, G]` -> `[E, 32 · G, out]`."""
    experts, out, groups, _ = blocks.shape
    result = torch.empty(experts, groups * 32, out, dtype=dtype)
    for expert in range(experts):
        factors = as_factors(scales[expert]).unsqueeze(-1)
        for part in parts_of(out, groups * 32):
            values = e2m1(blocks[expert, part]) * factors[part]
            result[expert, :, part] = values.view(len(values), -1).to(dtype).T
    return result


def encode(weight: Tensor, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """`[E, in, out]` -> `[E, out, G, 16]` and `[E, out, G]`."""
    blocks, scales = torch.empty_like(blocks), torch.empty_like(scales)
    for expert, matrix in enumerate(weight):
        rows = matrix.T.float()
        scales[expert] = exponents(largest_in_blocks(rows, (1, 32)))
        blocks[expert] = to_e2m1(rows.unflatten(1, (-1, 32)) / as_factors(scales[expert]).unsqueeze(-1))
    return blocks, scales
