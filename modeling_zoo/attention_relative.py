"""Attention whose scores depend on the distance through learned projections (Transformer-XL)."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .ops_attention_bands import AttentionMask
from .ops_own_part import own_part
from .position_tables import interleaved_waves


class TransformerXLAttention(GroupedQueryAttention):
    """softmax(((q + u) kᵀ + (q + v) r_{i-j}ᵀ) · scale) v with r = W_r sinusoid(i - j) (Dai et al. 2019, §3.3).

    u and v `[H, d]` are learned, W_r is `r_proj`. The second term is a position bias that depends on the query, so
    every backend that takes one can compute it. (Gopher, Chinchilla.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        heads = config.num_attention_heads
        self.r_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.distance_bias = nn.Parameter(torch.zeros(heads, self.head_dim))

    def initialize(self, std: float) -> None:
        super().initialize(std)
        init.zeros_(self.content_bias)
        init.zeros_(self.distance_bias)

    @property
    def query_matrix(self) -> nn.Linear:
        """The projection whose rows are the heads of queries."""
        return self.q_proj if self.q_a_proj is None else self.q_b_proj

    def distance_scores(self, query: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Queries `[B, H, T, d]`, distances `[T, K]` → `[B, H, T, K]`: every distance is projected once, then
        picked."""
        count = distances.shape[-1]
        waves = interleaved_waves(torch.arange(count, device=query.device), self.config.hidden_size).to(query.dtype)
        rows = self.r_proj(waves).view(count, -1, self.head_dim).permute(1, 2, 0)
        by_distance = torch.matmul(query + own_part(self.distance_bias, self.query_matrix)[:, None], rows)
        index = distances.clamp(0, count - 1).expand(*query.shape[:2], -1, -1)
        return by_distance.gather(-1, index)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: AttentionMask,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of q + u, with the second term as the bias; `position_bias` are the distances `[T, S]`."""
        bias = self.distance_scores(query, position_bias) * self.scaling
        query = query + own_part(self.content_bias, self.query_matrix)[:, None]
        return super().attend(query, key, value, attention_mask, position_bias=bias, **kwargs)
