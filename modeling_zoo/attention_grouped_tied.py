"""Attention whose keys are, where they do not rotate, their values."""

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention


class GroupedTiedAttention(GroupedQueryAttention):
    """softmax(q [r, c]ᵀ · scale) v with c the first d - p channels of v and one rotated key r `[p]` for all heads.

        x [B, T, D] → kv_proj        v [B, T, K, v], values, and with their first channels what of the keys stands still
                    → k_rope_proj    r [B, T, 1, p], rotated: partial_rotary_factor says how many channels, half of d in
                                     the paper; none in a layer that does not rotate, whose keys are its values

    Cached are v, where a cache layer has keys, and r: K v + p numbers a token, half of grouped-query attention.
    (Grouped-tied attention, Zadouri et al. 2025, arXiv 2505.21487, §3.3.)
    """

    def build_keys(self, config: ZooConfig, layer_idx: int) -> None:
        self.rope, bias = config.tied_rope_width(layer_idx), config.attention_bias
        self.k_rope_proj = nn.Linear(config.hidden_size, self.rope, bias=bias) if self.rope else None
        self.kv_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.value_width, bias=bias)

    def tied(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, D]` → what is cached: the values of all heads side by side `[B, 1, T, K · v]`, and r `[B, 1, T, p]`,
        rotated."""
        value = self.kv_proj(hidden_states)
        if self.k_rope_proj is None:
            return value.unsqueeze(1), value[..., :0].unsqueeze(1)
        key = self.norm_and_rotate(self.k_rope_proj(hidden_states).unsqueeze(2), None, position_embeddings)
        return value.to(key.dtype).unsqueeze(1), key.transpose(1, 2)

    def update_cache(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        past_key_values: Cache | None,
        shared_key_values: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts v and r of these tokens into the cache → keys `[B, K, S, d]` and values `[B, K, S, v]` of all tokens."""
        value, key = self.tied(hidden_states, position_embeddings)
        if past_key_values is not None:
            value, key = past_key_values.update(value, key, self.layer_idx)
        value = value.squeeze(1).unflatten(-1, (-1, self.value_width)).transpose(1, 2)
        shared = key.expand(-1, value.shape[1], -1, -1)
        return torch.cat((shared, value[..., : self.head_dim - self.rope]), dim=-1), value
