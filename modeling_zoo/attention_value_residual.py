"""Attention whose values are mixed with those of the first layer."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .ops_cross_layer import SharedKeyValues


class ValueResidualAttention(GroupedQueryAttention):
    """softmax(q kᵀ · scale) (λ₁ v + λ₂ v_first), v_first the values `[B, K, T, v]` of the same tokens in layer
    `value_source`.

        layer 0   v ─────┬────────────────┐         the first layer with value residual mixes nothing
        layer 1   λ₁ v + λ₂ v_first       │
        layer 2   λ₁ v + ─────────── λ₂ v_first     each with weights of its own

    The mixture is cached. λ₁ and λ₂ are learned, ½ each before training, or fixed by `value_residual`. (ResFormer, Zhou
    et al. 2024, arXiv 2410.17897, §3.) Raises ValueError where a layer that mixes is called without
    `shared_key_values`.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.source = config.value_source
        self.value_weights = config.value_residual
        if config.mixes_values(layer_idx) and self.value_weights is None:
            self.value_weights = nn.Parameter(torch.empty(2))

    def initialize(self, std: float) -> None:
        super().initialize(std)
        if isinstance(self.value_weights, nn.Parameter):
            init.constant_(self.value_weights, 0.5)

    def update_cache(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        past_key_values: Cache | None,
        shared_key_values: SharedKeyValues | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts keys and mixed values of these tokens into the cache → those of all tokens, `[B, K, S, d]` and
        `[B, K, S, v]`. Raises ValueError where it mixes without `shared_key_values`."""
        key, value = self.keys_and_values(hidden_states, position_embeddings)
        if self.layer_idx != self.source:
            value = self.mixed(value, shared_key_values)
        elif shared_key_values is not None:
            shared_key_values.put(self.layer_idx, key, value)
        return (key, value) if past_key_values is None else past_key_values.update(key, value, self.layer_idx)

    def mixed(self, value: torch.Tensor, shared_key_values: Any) -> torch.Tensor:
        """λ₁ v + λ₂ v_first, `[B, K, T, v]`; raises ValueError without `shared_key_values`."""
        if shared_key_values is None:
            raise ValueError(
                f"Layer {self.layer_idx} mixes in the values of layer {self.source}: pass it the shared_key_values of "
                "the earlier layers."
            )
        _, first = shared_key_values.of(self.source, value.device)
        weight, weight_of_first = self.value_weights
        return value * weight + first * weight_of_first
