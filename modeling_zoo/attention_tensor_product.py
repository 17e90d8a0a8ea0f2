"""Attention whose queries, keys and values are sums of products of a factor over heads and one over channels."""

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention


def product_of(factors: torch.Tensor, rank: int, heads: int) -> torch.Tensor:
    """Factors of `rank` products side by side, `[B, T, R · (h + d)]` → (1 / R) Σ_r a_r b_rᵀ, `[B, h, T, d]`."""
    head_factors, channel_factors = factors.split((rank * heads, factors.shape[-1] - rank * heads), dim=-1)
    head_factors, channel_factors = head_factors.unflatten(-1, (rank, -1)), channel_factors.unflatten(-1, (rank, -1))
    return torch.einsum("btrh,btrd->bhtd", head_factors, channel_factors) / rank


class TensorProductAttention(GroupedQueryAttention):
    """softmax(q kᵀ · scale) v with q = (1 / R) Σ_r a_r(x) b_r(x)ᵀ `[H, d]`, keys and values alike.

        x [B, T, D] → q_a_proj [R_q, H], q_b_proj [R_q, d]        queries
                    → k_a_proj [R_k, K], k_b_proj [R_k, d] ┐      cached: R_k (K + d) + R_v (K + v) numbers a token
                    → v_a_proj [R_v, K], v_b_proj [R_v, v] ┘
          b of queries and keys are rotated, which rotates the product.

    (Tensor product attention, Zhang et al. 2025, arXiv 2501.06425, §3.)
    """

    def build_queries(self, config: ZooConfig, width: int) -> None:
        self.query_rank = config.attention_factors["query_rank"]
        self.q_a_proj, self.q_b_proj = self.factors(config, self.query_rank, config.num_attention_heads, self.head_dim)

    def build_keys(self, config: ZooConfig, layer_idx: int) -> None:
        self.key_rank, self.value_rank = config.attention_factors["key_rank"], config.attention_factors["value_rank"]
        self.kv_heads = config.num_key_value_heads
        self.k_a_proj, self.k_b_proj = self.factors(config, self.key_rank, self.kv_heads, self.head_dim)
        self.v_a_proj, self.v_b_proj = self.factors(config, self.value_rank, self.kv_heads, self.value_width)

    def factors(self, config: ZooConfig, rank: int, heads: int, width: int) -> tuple[nn.Linear, nn.Linear]:
        """Projections to the factors over heads and over channels."""
        outputs, bias = (rank * heads, rank * width), config.attention_bias
        head_factors, channel_factors = (nn.Linear(config.hidden_size, output, bias=bias) for output in outputs)
        return head_factors, channel_factors

    def rotated(
        self, factors: torch.Tensor, rank: int, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> torch.Tensor:
        """Factors over channels `[B, T, R · d]`, each rotated as a head is."""
        return self.norm_and_rotate(factors.unflatten(-1, (rank, -1)), None, position_embeddings).flatten(-2)

    def queries(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        position_ids: torch.Tensor | None,
        source: None = None,
    ) -> tuple[torch.Tensor, None]:
        """`[B, T, D]` → queries `[B, H, T, d]`."""
        channels = self.rotated(self.q_b_proj(hidden_states), self.query_rank, position_embeddings)
        factors = torch.cat((self.q_a_proj(hidden_states), channels), dim=-1)
        query = product_of(factors, self.query_rank, self.config.num_attention_heads)
        if self.temperature is not None:
            query = self.temperature(query.transpose(1, 2), position_ids).transpose(1, 2)
        return query, None

    def keys_and_values(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, D]` → cached factors of keys `[B, 1, T, R_k (K + d)]`, of values `[B, 1, T, R_v (K + v)]`."""
        channels = self.rotated(self.k_b_proj(hidden_states), self.key_rank, position_embeddings)
        key = torch.cat((self.k_a_proj(hidden_states), channels), dim=-1)
        value = torch.cat((self.v_a_proj(hidden_states), self.v_b_proj(hidden_states)), dim=-1)
        return key.unsqueeze(1), value.to(key.dtype).unsqueeze(1)

    def update_cache(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        past_key_values: Cache | None,
        shared_key_values: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the factors of these tokens into the cache → keys `[B, K, S, d]` and values `[B, K, S, v]` of all."""
        key, value = self.keys_and_values(hidden_states, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        key = product_of(key.squeeze(1), self.key_rank, self.kv_heads)
        return key, product_of(value.squeeze(1), self.value_rank, self.kv_heads)
