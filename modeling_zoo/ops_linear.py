"""x Wᵀ + b. On a processor without units for half precision it is computed in float32, a tile of W at a time.

Such a processor emulates half-precision products at a third of its float32 speed. A half-precision product is summed in
float32 and rounded once, so computing it in float32 and rounding the result differs in the order of the sums alone.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import maybe_autocast

from .ops_dispatch import HALF_DTYPES, use_fp32_gemm

# Rows of x, and products in all, from which converting a matrix to float32 costs less than it saves.
MIN_ROWS, MIN_PRODUCTS = 24, 2**24
# A tile: outputs and numbers of W converted at once, which a core's cache holds, and the rows of x that share it.
TILE_OUTPUTS, TILE_NUMBERS, TILE_ROWS = 320, 2**21, 1024


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b, `[..., i]`, `[o, i]`, `[o]` → `[..., o]`."""
    return fp32_linear(x, weight, bias) if use_fp32_linear(x, weight) else F.linear(x, weight, bias)


def use_fp32_linear(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `fp32_linear` is the faster form for `[..., i]`, `[o, i]`."""
    # Asked before the sizes, which a traced graph must not be bound to.
    if x.dtype not in HALF_DTYPES or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return False
    if x.numel() < MIN_ROWS * x.shape[-1] or x.numel() * weight.shape[0] < MIN_PRODUCTS:
        return False
    return type(weight) in (nn.Parameter, torch.Tensor) and weight.device == x.device and use_fp32_gemm(x)


def fp32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`linear` in float32, rounded to the dtype of `x` at the end."""
    rows = x.reshape(-1, x.shape[-1])
    outputs, inputs = weight.shape
    output = x.new_empty(len(rows), outputs)
    height = min(max(1, TILE_NUMBERS // inputs), TILE_OUTPUTS, outputs)
    buffer = torch.empty(height, inputs, dtype=torch.float32)
    bias = None if bias is None else bias.float()
    for start in range(0, len(rows), TILE_ROWS):
        block = rows[start : start + TILE_ROWS].float()
        for first in range(0, outputs, height):
            last = min(first + height, outputs)
            tile = buffer[: last - first].copy_(weight[first:last])
            product = F.linear(block, tile, None if bias is None else bias[first:last])
            output[start : start + TILE_ROWS, first:last] = product
    return output.view(*x.shape[:-1], outputs)


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b in float32 and left there, autocast or not: `[..., i]`, `[o, i]`, `[o]` → `[..., o]`."""
    with maybe_autocast(device_type=x.device.type, enabled=False):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())
