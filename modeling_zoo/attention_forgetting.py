"""Attention that forgets: scores fall with a gate of every token between a key and its query."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .attention_ordered import OrderedAttention
from .ops_attention_bands import AttentionMask
from .ops_attention_order import forgetting_bias


class ForgettingAttention(OrderedAttention):
    """softmax(q kᵀ · scale + D) v with D_ij = Σ_{l = j + 1 ... i} log f_l and f = σ(W_f x + b_f), one gate per head.

    log f is cached behind the channels of the keys, `[B, K, S, d + H / K]`. (Forgetting Transformer, Lin et al. 2025,
    arXiv 2503.02130, §3.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.f_proj = nn.Linear(config.hidden_size, config.num_attention_heads)

    def initialize(self, std: float) -> None:
        super().initialize(std)
        init.zeros_(self.f_proj.bias)

    def keys_and_values(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, D]` → keys and log f of the query heads that read them `[B, K, T, d + H / K]`, values
        `[B, K, T, v]`."""
        key, value = super().keys_and_values(hidden_states, position_embeddings)
        log_forget = F.logsigmoid(self.f_proj(hidden_states).float()).to(key.dtype)
        log_forget = log_forget.view(*hidden_states.shape[:-1], -1, self.num_key_value_groups).transpose(1, 2)
        return torch.cat((key, log_forget), dim=-1), value

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
        """Keys with log f `[B, K, S, d + H / K]`; a `position_bias` is added to D."""
        key, log_forget = key.split((self.head_dim, self.num_key_value_groups), dim=-1)
        log_forget = log_forget.transpose(2, 3).flatten(1, 2)
        bias = forgetting_bias(log_forget, attention_mask, query.shape[2], slot_order).to(query.dtype)
        bias = bias if position_bias is None else bias + position_bias
        return super().attend(query, key, value, attention_mask, position_bias=bias, **kwargs)
