"""Norms over the last dimension, and the two ways they are used: on the stream and on queries and keys."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .ops_dispatch import is_bare

# Numbers whose float32 forms a core's cache holds.
BLOCK = 2**17
# What torch's own norm computes in float32.
ONE_CALL = (torch.float32, torch.bfloat16, torch.float16)


def block_of_tokens(x):
    """How many tokens of a bare `x` `[B, T, ..., D]` to take at a time, None for all: a CPU waits for memory otherwise,
    and the float32 forms of all of them would be several times `x`."""
    if x.numel() <= 2 * BLOCK or x.dim() < 3:
        return None
    return max(1, BLOCK * x.shape[1] // x.numel())


class Norm(nn.Module):
    """Shared parameters of the norms: y = normalise(x) · (offset + weight) + bias over the last dimension of `shape`.

    A `shape` of more than one dimension gives each leading entry (a head) a weight of its own. `unit_offset` stores the
    weight as an offset from one. `cast` says where an implementation rounds; it matters below float32 only, as does
    `narrow`: x is rounded to the dtype of the weight first.
    """

    def __init__(self, shape, eps, affine=True, bias=False, unit_offset=False, cast=None, narrow=False):
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.offset = 1.0 if unit_offset else 0.0
        self.cast = cast
        self.narrow = narrow
        self.dim = shape[-1]
        self.weight = nn.Parameter(torch.empty(shape)) if affine else None
        self.bias = nn.Parameter(torch.empty(shape)) if affine and bias else None
        if affine:
            nn.init.constant_(self.weight, 1.0 - self.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def initialize(self, std):
        if self.weight is not None:
            init.constant_(self.weight, 1.0 - self.offset)
        if self.bias is not None:
            init.zeros_(self.bias)

    def extra_repr(self):
        return f"{self.dim}, eps={self.eps}, cast={self.cast}, unit_offset={bool(self.offset)}"


class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight, `[..., D]` (Zhang & Sennrich 2019; Llama, Qwen).

    The mean is taken in float32. `cast_then_scale` rounds before the weight (Llama), `scale_then_cast` after (OLMo 2,
    Gemma).
    """

    def forward(self, x):
        if not is_bare(x):
            return self.normalise(x)
        normalise = self.in_one_call if x.dtype in ONE_CALL and self.cast != "scale_then_cast" else self.normalise
        step = block_of_tokens(x)
        if step is None:
            return normalise(x)
        return torch.cat([normalise(part) for part in x.split(step, dim=1)], dim=1)

    def in_one_call(self, x):
        """The same by torch's own norm, which on a CPU is these operations one after the other, but for the weight."""
        weight = self.weight
        x = x.to(weight.dtype) if self.narrow else x
        normed = torch.rms_norm(x, (self.dim,), None, self.eps)
        # Autocast may have made it float32.
        normed = normed if normed.dtype == x.dtype else normed.to(x.dtype)
        if weight is None:
            return normed
        return (weight + self.offset if self.offset else weight) * normed

    def normalise(self, x):
        """All of `x` at once."""
        x = x.to(self.weight.dtype) if self.narrow else x
        normed = x.float()
        normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return normed.to(x.dtype)
        if self.cast == "scale_then_cast":
            weight = self.weight.float() + self.offset if self.offset else self.weight
            return (normed * weight).to(x.dtype)
        weight = self.weight + self.offset if self.offset else self.weight
        return weight * normed.to(x.dtype)


class LayerNorm(Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias, `[..., D]` (Ba et al. 2016; GPT-2, Cohere).

    `native` is torch's kernel for x and weight of one dtype, `float32` computes all in float32; both round once. A
    weight per head is no kernel's: `native` then is `float32`, None rounds before that weight too (Chameleon).
    """

    def forward(self, x):
        x = x.to(self.weight.dtype) if self.narrow else x
        if self.weight is None:
            return F.layer_norm(x.float() if self.cast == "float32" else x, (self.dim,), eps=self.eps).to(x.dtype)
        per_head = self.weight.dim() > 1
        if self.cast == "float32" or (self.cast == "native" and per_head):
            return self._float32(x)
        weight = self.weight + self.offset if self.offset else self.weight
        if not per_head:
            # Where the stream is wider than the weights, as a product of the two would be.
            weight, bias = (None if part is None else part.to(x.dtype) for part in (weight, self.bias))
            return F.layer_norm(x, (self.dim,), weight, bias, self.eps)
        normed = F.layer_norm(x, (self.dim,), eps=self.eps) * weight
        return normed if self.bias is None else normed + self.bias

    def _float32(self, x):
        normed = x.float()
        mean = normed.mean(-1, keepdim=True)
        variance = (normed - mean).pow(2).mean(-1, keepdim=True)
        normed = (self.weight.float() + self.offset) * ((normed - mean) * torch.rsqrt(variance + self.eps))
        if self.bias is not None:
            normed = normed + self.bias.float()
        return normed.to(x.dtype)


class ProjectionRMSNorm(RMSNorm):
    """RMS norm over all heads of a projection together: `[..., H, d]` normalised over H · d (OLMo 2, OLMoE)."""

    def forward(self, x):
        return super().forward(x.flatten(-2)).view_as(x)


class ProjectionLayerNorm(LayerNorm):
    """Layer norm over all heads of a projection together: `[..., H, d]` normalised over H · d (Chinchilla-style
    ViT-22B)."""

    def forward(self, x):
        return super().forward(x.flatten(-2)).view_as(x)


NORMS = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}
QK_NORMS = {
    ("rms_norm", "head"): RMSNorm,
    ("layer_norm", "head"): LayerNorm,
    ("rms_norm", "full"): ProjectionRMSNorm,
    ("layer_norm", "full"): ProjectionLayerNorm,
}


def make_norm(config, size, narrow=False):
    """The norm of the residual stream over `size` channels; `narrow` for one that reads a stream kept in float32."""
    return NORMS[config.norm_type](
        size,
        config.norm_eps,
        affine=config.norm_elementwise_affine,
        bias=config.norm_bias,
        unit_offset=config.norm_unit_offset,
        cast=config.norm_cast,
        narrow=narrow and config.residual_in_fp32,
    )


def make_qk_norm(config, num_heads):
    """The norm of queries or keys `[..., num_heads, head_dim]`, Identity where the config has none.

    Of the same kind as the stream's norm, it shares that norm's offset and cast order.
    """
    if config.qk_norm is None:
        return nn.Identity()
    shape = {
        "head": {"shared": (config.head_dim,), "per_head": (num_heads, config.head_dim), "none": (config.head_dim,)},
        "full": {"shared": (num_heads * config.head_dim,), "none": (num_heads * config.head_dim,)},
    }[config.qk_norm_scope][config.qk_norm_weight]
    same_kind = config.qk_norm == config.norm_type
    affine = config.qk_norm_weight != "none"
    return QK_NORMS[config.qk_norm, config.qk_norm_scope](
        shape,
        config.qk_norm_eps,
        affine=affine,
        bias=config.qk_norm_bias,
        unit_offset=same_kind and affine and config.norm_unit_offset,
        cast=config.norm_cast if same_kind else None,
    )
