"""Norms over the last dimension, and the two ways they are used: on the residual stream and on queries and keys."""

import torch
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .ops_norm import layer_norm, rms_norm


class Norm(nn.Module):
    """What norms share: y = normalise(x) · (offset + weight) + bias, `[..., D]` → `[..., D]`.

    `shape` is that of the weight: D, or (H, d) for a weight per head. `unit_offset` stores the weight as an offset from
    one. `cast` says where an implementation rounds, and `cast_input` rounds x to the dtype of the weight first: both
    matter below float32 only.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        eps: float,
        affine: bool = True,
        bias: bool = False,
        unit_offset: bool = False,
        cast: str | None = None,
        cast_input: bool = False,
    ):
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.offset = 1.0 if unit_offset else 0.0
        self.cast, self.cast_input = cast, cast_input
        self.dim = shape[-1]
        self.weight = nn.Parameter(torch.empty(shape)) if affine else None
        self.bias = nn.Parameter(torch.empty(shape)) if affine and bias else None
        if affine:
            nn.init.constant_(self.weight, 1.0 - self.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def initialize(self, std: float) -> None:
        if self.weight is not None:
            init.constant_(self.weight, 1.0 - self.offset)
        if self.bias is not None:
            init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, cast={self.cast}, unit_offset={bool(self.offset)}"


class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight, `[..., D]` (Zhang & Sennrich 2019; Llama, Qwen).

    The mean is taken in float32. `cast_then_scale` rounds before the weight (Llama), `scale_then_cast` after it (OLMo
    2, Gemma).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype) if self.cast_input else x
        return rms_norm(x, self.weight, self.eps, self.offset, self.cast)


class LayerNorm(Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias, `[..., D]` (Ba et al. 2016; GPT-2, Cohere).

    `native` rounds as torch's kernel does, `float32` computes all of it in float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype) if self.cast_input else x
        return layer_norm(x, self.weight, self.bias, self.eps, self.offset, self.cast)


class OverHeads:
    """A mixin in front of a norm: all heads of a projection together, `[..., H, d]` normalised as `[..., H · d]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(-2)).view_as(x)


# Classes of their own: a serving engine decides by class which norms its kernel can take the place of.
class ProjectionRMSNorm(OverHeads, RMSNorm):
    """RMS norm over all heads of a projection together (OLMo 2, OLMoE)."""


class ProjectionLayerNorm(OverHeads, LayerNorm):
    """Layer norm over all heads of a projection together (Dehghani et al. 2023, ViT-22B)."""


NORMS = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}
# Those of queries and keys whose qk_norm_config.scope is "full".
PROJECTION_NORMS = {"rms_norm": ProjectionRMSNorm, "layer_norm": ProjectionLayerNorm}


def make_norm(config: ZooConfig, size: int, cast_input: bool = False) -> Norm:
    """The norm of the residual stream over `size` channels; `cast_input` for one that reads a stream kept in float32
    (residual_in_fp32)."""
    return NORMS[config.norm_type](
        size,
        config.norm_eps,
        affine=config.norm_elementwise_affine,
        bias=config.norm_bias,
        unit_offset=config.norm_unit_offset,
        cast=config.precision["norm"],
        cast_input=config.precision["residual_in_fp32"] and cast_input,
    )


def make_sub_norm(config: ZooConfig, layer_idx: int | None, size: int) -> Norm | None:
    """The norm over `size` channels in front of the last projection of an attention or MLP, where the block of layer
    `layer_idx` has one (Sub-LN, Wang et al. 2022, arXiv 2210.06423); None elsewhere, and for an MLP of no layer."""
    if layer_idx is None or "sub_norm" not in config.block_type:
        return None
    return make_norm(config, size) if config.block_types[layer_idx] == "sub_norm" else None


def make_qk_norm(
    config: ZooConfig, num_heads: int, width: int | None = None, of_queries: bool = False
) -> Norm | nn.Identity:
    """The norm of queries or keys `[..., num_heads, width]` (None: head_dim), Identity where the config has none.

    `qk_norm_config.scope="full"` normalises all heads together (OLMo 2). Of the same type as the residual stream's
    norm, it shares that norm's offset and cast order.
    """
    if config.qk_norm is None:
        return nn.Identity()
    how = config.qk_norm_config
    together, per_head = how["scope"] == "full", how["weight"] == "per_head"
    width = config.head_dim if width is None else width
    size = num_heads * width if together else width
    same_type = config.qk_norm == config.norm_type
    affine = how["weight"] != ("keys" if of_queries else "none") and how["weight"] != "none"
    return (PROJECTION_NORMS if together else NORMS)[config.qk_norm](
        (num_heads, size) if per_head else size,
        config.norm_eps if how["eps"] is None else how["eps"],
        affine=affine,
        bias=how["bias"],
        unit_offset=same_type and affine and config.norm_unit_offset,
        cast=config.precision["norm"] if same_type else None,
    )
