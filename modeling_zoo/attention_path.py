"""Attention along a path: every token between a key and its query reflects the query, in place of a rotation."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configuration_zoo import ZooConfig

from .attention_ordered import OrderedAttention
from .ops_attention_bands import AttentionMask
from .ops_attention_order import boolean_mask
from .ops_attention_path import path_scores


class PathAttention(OrderedAttention):
    """softmax(q_iᵀ H_i H_(i-1) ... H_(j+1) k_j · scale) v_j with H_t = I - β_t w_t w_tᵀ, w_t = W_w x_t / |W_w x_t| and
    β_t = 2 σ(W_β x_t + b), one of each for a key-value head.

        β = 0  H leaves what passes        β = 1  H takes away its part along w        β = 2  H mirrors it

    u = sqrt(β) w is cached behind the channels of the keys, `[B, K, S, 2 d]`. Positions need nothing else, rotations
    go in front. (PaTH, Yang et al. 2025, arXiv 2505.16381, §2, without the short convolution over W_w x.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        hidden, kv_heads = config.hidden_size, config.num_key_value_heads
        self.w_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.bt_proj = nn.Linear(hidden, kv_heads)

    def keys_and_values(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, D]` → keys and u `[B, K, T, 2 d]`, values `[B, K, T, v]`."""
        key, value = super().keys_and_values(hidden_states, position_embeddings)
        direction = self.w_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).float()
        # sqrt(2 σ(x)), whose gradient a strength of 0 does not break.
        strength = torch.exp((F.logsigmoid(self.bt_proj(hidden_states).float()) + math.log(2.0)) / 2)
        reflections = F.normalize(direction, dim=-1) * strength.unsqueeze(-1)
        return torch.cat((key, reflections.transpose(1, 2).to(key.dtype)), dim=-1), value

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: AttentionMask,
        position_bias: torch.Tensor | None = None,
        slot_order: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys with u `[B, K, S, 2 d]`; the scores go in as a bias, beside those of no query."""
        key, reflections = key.split(self.head_dim, dim=-1)
        visible = boolean_mask(attention_mask, query.shape[2], key.shape[2], query.device)
        scores = path_scores(query, key, reflections, visible, slot_order) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if position_bias is not None:
            scores = scores + position_bias
        bias = scores if self.upcast else scores.to(query.dtype)
        return super().attend(torch.zeros_like(query), key, value, attention_mask, position_bias=bias, **kwargs)
