"""Every mixer with a state of fixed size, by the name in `linear_attention_type`, and hybrid layers, where one stands
beside attention."""

from typing import Any

import torch
from torch import nn

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .ops_attention_bands import AttentionMask
from .recurrent_delta_product import DeltaProductAttention
from .recurrent_linear import DeltaAttention, LinearAttention
from .recurrent_state_space import GatedLinearUnit, SelectiveScan, ShortConvolutionMixer, StateSpaceDuality

LINEAR_MIXERS = {
    "linear_attention": LinearAttention,
    "lightning_attention": LinearAttention,
    "gated_linear_attention": LinearAttention,
    "delta_net": DeltaAttention,
    "gated_delta_net": DeltaAttention,
    "delta_product": DeltaProductAttention,
    "gated_delta_product": DeltaProductAttention,
    "kimi_delta_attention": DeltaAttention,
    "mamba2": StateSpaceDuality,
    "mamba": SelectiveScan,
    "rg_lru": GatedLinearUnit,
    "short_conv": ShortConvolutionMixer,
}


class HybridAttention(GroupedQueryAttention):
    """m_o · attention(m_i · x), `[B, T, D]`: the attention of a hybrid layer, with two constant factors (Falcon-H1)."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.in_multiplier = config.mup_multipliers["attention_in"]
        self.out_multiplier = config.mup_multipliers["attention_out"]

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = hidden_states if self.in_multiplier is None else hidden_states * self.in_multiplier
        output, weights = super().forward(hidden_states, **kwargs)
        return output if self.out_multiplier is None else output * self.out_multiplier, weights


# By the type of the layer. Of softmax attentions, the cache of this one fits into that of a hybrid layer.
HYBRID_ATTENTIONS = {"hybrid": HybridAttention, "hybrid_sliding": HybridAttention}


def mix_in_parallel(
    attention: nn.Module,
    recurrence: nn.Module,
    hidden_states: torch.Tensor,
    attention_mask: dict[str, AttentionMask] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """attention(x) + recurrence(x), `[B, T, D]`: both read the same input and keep their part of one cache layer.

    For the layer types hybrid and hybrid_sliding; `attention_mask` is one mask per part, {layer type: mask}
    (Falcon-H1, Zuo et al. 2025; Hymba, Dong et al. 2024).
    """
    masks = dict(attention_mask or {})
    recurrent_mask = masks.pop("linear_attention", None)
    attended, _ = attention(hidden_states, attention_mask=next(iter(masks.values()), None), **kwargs)
    mixed, _ = recurrence(hidden_states, attention_mask=recurrent_mask, **kwargs)
    return mixed + attended


PARALLEL_MIXES = {"hybrid": mix_in_parallel, "hybrid_sliding": mix_in_parallel}
