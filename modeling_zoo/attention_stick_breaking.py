"""Attention that breaks a stick: the newest keys take their share first, older ones what is left."""

from typing import Any

import torch
from torch import nn

from .attention_ordered import OrderedAttention
from .ops_attention import repeat_kv
from .ops_attention_bands import AttentionMask
from .ops_attention_order import boolean_mask, stick_breaking_weights


class StickBreakingAttention(OrderedAttention):
    """A v with A_ij = σ(z_ij) Π_{j < l < i} (1 - σ(z_il)), z = q kᵀ · scale: no softmax, a sum of weights up to one.

    A token reads the tokens before it, not itself. (Tan et al. 2024, arXiv 2410.17980, §2.)
    """

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: AttentionMask,
        position_bias: torch.Tensor | None = None,
        slot_order: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H, v]`, weights `[B, H, T, S]`)."""
        key, value = (repeat_kv(states, self.num_key_value_groups) for states in (key, value))
        if self.upcast:
            query, key = query.float(), key.float()
        scores = torch.matmul(query, key.transpose(2, 3)) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if position_bias is not None:
            scores = scores + position_bias
        visible = boolean_mask(attention_mask, query.shape[2], key.shape[2], query.device)
        weights = stick_breaking_weights(scores, visible, slot_order).to(value.dtype)
        weights = nn.functional.dropout(weights, p=self.attention_dropout, training=self.training)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights
