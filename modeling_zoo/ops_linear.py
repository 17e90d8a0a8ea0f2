"""Products of half-precision numbers on a processor without units for them: computed in float32, a tile at a time.

Such a processor emulates them at a third of its float32 speed. A product in half precision is summed up in float32 and
rounded once, so computing all of it in float32 and rounding the result is the same but for the order of the sums.
"""

import platform

import torch
import torch.nn.functional as F
from torch import nn

from .ops_dispatch import is_bare

HALVES = (torch.bfloat16, torch.float16)
# Rows and products from which lifting a matrix costs less than it saves. Outputs and rows of a tile, and numbers of a
# matrix lifted at once: what a core's cache holds, and enough rows for a tile to be lifted seldom.
LEAST_ROWS, LEAST_PRODUCTS = 24, 2**24
OUTPUTS, ROWS, MOST_LIFTED = 320, 1024, 2**21


def is_emulated(dtype):
    """Whether this machine's CPU has no units for products in `dtype`; False where nobody has measured."""
    if dtype not in HALVES or platform.machine() not in ("x86_64", "AMD64"):
        return False
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return not (dtype == torch.bfloat16 and has_units())


def may_lift(states):
    """Whether products with `states` may be computed in float32: on a CPU that emulates theirs, where nothing is
    recorded, traced or cast on its way."""
    if states.dtype not in HALVES or not is_bare(states):
        return False
    return not torch.is_autocast_enabled("cpu") and is_emulated(states.dtype)


def lifts(x, weight):
    """Whether x Wᵀ, `[..., i]` and `[o, i]`, is a case for `lifted_linear`."""
    # A comparison of sizes would bind a traced graph to them.
    if x.dtype not in HALVES or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return False
    if x.numel() < LEAST_ROWS * x.shape[-1] or x.numel() * weight.shape[0] < LEAST_PRODUCTS:
        return False
    return type(weight) in (nn.Parameter, torch.Tensor) and weight.device == x.device and may_lift(x)


def lifted_linear(x, weight, bias=None):
    """x Wᵀ + b in float32, rounded to the dtype of `x`: `[..., i]`, `[o, i]`, `[o]` → `[..., o]`."""
    rows = x.reshape(-1, x.shape[-1])
    outputs, inputs = weight.shape
    output = x.new_empty(len(rows), outputs)
    tile = min(max(1, MOST_LIFTED // inputs), OUTPUTS, outputs)
    lifted = torch.empty(tile, inputs, dtype=torch.float32)
    bias = None if bias is None else bias.float()
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS].float()
        for first in range(0, outputs, tile):
            last = min(first + tile, outputs)
            part = lifted[: last - first].copy_(weight[first:last])
            product = F.linear(block, part, None if bias is None else bias[first:last])
            output[start : start + ROWS, first:last] = product
    return output.view(*x.shape[:-1], outputs)


def linear(x, weight, bias=None):
    """x Wᵀ + b, `[..., i]`, `[o, i]`, `[o]` → `[..., o]`, by the faster form."""
    return lifted_linear(x, weight, bias) if lifts(x, weight) else F.linear(x, weight, bias)
