"""Attention that asks which of two keys is the older one, which the slots of a cache need not tell."""

from typing import Any

import torch
from transformers.cache_utils import Cache

from .attention import GroupedQueryAttention
from .position_biases import slots_in_order


class OrderedAttention(GroupedQueryAttention):
    """Grouped-query attention whose `attend` is given `slot_order`: the slots from the oldest key to the newest `[S]`,
    or None where they stand in order."""

    def forward(
        self, hidden_states: torch.Tensor, *, past_key_values: Cache | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Asked before the token is written: a ring counts it in then.
        order = slots_in_order(hidden_states, past_key_values, self.layer_idx)
        return super().forward(hidden_states, past_key_values=past_key_values, slot_order=order, **kwargs)
