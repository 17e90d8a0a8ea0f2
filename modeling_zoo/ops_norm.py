"""Normalisation over the last dimension: the formula with its roundings, and RMS norm by torch's kernel."""

import torch
import torch.nn.functional as F

from .ops_dispatch import is_eager_cpu_inference, is_eager_cuda

# Numbers whose float32 copies a core's cache holds.
CHUNK_NUMBERS = 2**17
# The dtypes that torch's own RMS norm computes in float32.
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain_rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0, cast: str | None = None
) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · (offset + weight), the mean in float32: `[..., d]`, `[d]` or `[H, d]` → `[..., d]`.

    `cast="scale_then_cast"` rounds to the dtype of x after the weight, anything else before it.
    """
    normed = x.float()
    normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(x.dtype)
    if cast == "scale_then_cast":
        weight = weight.float() + offset if offset else weight
        return (normed * weight).to(x.dtype)
    weight = weight + offset if offset else weight
    return weight * normed.to(x.dtype)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0, cast: str | None = None
) -> torch.Tensor:
    """`plain_rms_norm`, by torch's kernel where that is faster.

    On a CPU without gradients, in chunks of tokens, equal to the last bit; on CUDA with gradients too, up to the order
    of a sum in float32. A compiler makes one kernel of the formula itself.
    """
    if is_eager_cpu_inference(x):
        return chunked_rms_norm(x, weight, eps, offset, cast)
    if is_eager_cuda(x) and x.dtype in FUSED_DTYPES:
        if cast == "scale_then_cast" and weight is not None:
            return fused_scaled_rms_norm(x, weight, eps, offset)
        return fused_rms_norm(x, weight, eps, offset)
    return plain_rms_norm(x, weight, eps, offset, cast)


def chunked_rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0, cast: str | None = None
) -> torch.Tensor:
    """`plain_rms_norm` on a CPU: by torch's norm where that rounds alike, many tokens in chunks."""
    if x.numel() <= 2 * CHUNK_NUMBERS or x.dim() < 3 or x.shape[1] == 1:
        if cast != "scale_then_cast" and x.dtype in FUSED_DTYPES:
            return fused_rms_norm(x, weight, eps, offset)
        return plain_rms_norm(x, weight, eps, offset, cast)
    # The float32 copies of all tokens `[B, T, ..., d]` are several times x: a CPU would wait for memory.
    tokens = max(1, CHUNK_NUMBERS * x.shape[1] // x.numel())
    return torch.cat([chunked_rms_norm(part, weight, eps, offset, cast) for part in x.split(tokens, dim=1)], dim=1)


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0) -> torch.Tensor:
    """`plain_rms_norm` that rounds before the weight, by torch's own norm: on a CPU the same operations in a row."""
    normed = torch.rms_norm(x, (x.shape[-1],), None, eps)
    # Autocast may have made it float32.
    normed = normed if normed.dtype == x.dtype else normed.to(x.dtype)
    if weight is None:
        return normed
    return (weight + offset if offset else weight) * normed


def fused_scaled_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """`plain_rms_norm` that rounds after the weight, by torch's own norm, which takes a weight `[d]` of the dtype of x.

    Any other is multiplied in float32, 1 + weight as x + x · weight: the same up to the last bit of float32.
    """
    if offset == 0 and weight.dtype == x.dtype and weight.dim() == 1:
        return torch.rms_norm(x, weight.shape, weight, eps).to(x.dtype)
    normed = torch.rms_norm(x.float(), (x.shape[-1],), None, eps)
    scaled = torch.addcmul(normed, normed, weight) if offset == 1 else normed * (weight.float() + offset)
    return scaled.to(x.dtype)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: float = 0.0,
    cast: str | None = None,
) -> torch.Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) · (offset + weight) + bias: `[..., d]`, `[d]` or `[H, d]` → `[..., d]`.

    `cast="float32"` computes all of it in float32 and rounds at the end; `"native"` is torch's kernel for x and weight
    of one dtype, which also rounds once. No kernel takes a weight per head: there `"native"` is `"float32"`, and None
    rounds before the weight (Chameleon).
    """
    per_head = weight is not None and weight.dim() > 1
    if cast == "float32" or (cast == "native" and per_head):
        return float32_layer_norm(x, weight, bias, eps, offset)
    if weight is None:
        return F.layer_norm(x, x.shape[-1:], eps=eps).to(x.dtype)
    weight = weight + offset if offset else weight
    if not per_head:
        # x may be wider than the weights: a product of the two would be in its dtype.
        weight, bias = (None if part is None else part.to(x.dtype) for part in (weight, bias))
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    normed = F.layer_norm(x, x.shape[-1:], eps=eps) * weight
    return normed if bias is None else normed + bias


def float32_layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, offset: float
) -> torch.Tensor:
    """`layer_norm` in float32, rounded once to the dtype of x."""
    if weight is None:
        return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
    normed = x.float()
    mean = normed.mean(-1, keepdim=True)
    variance = (normed - mean).pow(2).mean(-1, keepdim=True)
    normed = (weight.float() + offset) * ((normed - mean) * torch.rsqrt(variance + eps))
    return (normed if bias is None else normed + bias.float()).to(x.dtype)
