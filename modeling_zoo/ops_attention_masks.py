"""Masks that transformers' builders cannot make without waiting for the device: numbers to add for the plain backend,
which they copy from the host for every token, and those over a ring of slots.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# The name by which transformers' builders find `additive_mask`.
ADDITIVE = "zoo_additive"


def additive_mask(
    *args: Any,
    q_length: int,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """`[B, 1, T, S]`: 0 where a query sees a key, the least number of `dtype` where not; None where one query sees all.

    Arguments as transformers' masks have them. A padding mask is not looked at, since that would wait for the device.
    """
    skip = allow_is_causal_skip and attention_mask is None and q_length == 1
    kwargs |= {"q_length": q_length, "attention_mask": attention_mask, "dtype": dtype}
    visible = sdpa_mask(*args, allow_is_causal_skip=skip, **kwargs)
    if visible is None:
        return None
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(visible.logical_not(), torch.finfo(dtype).min)


AttentionMaskInterface.register(ADDITIVE, additive_mask)


def visible_slots(
    ring: StaticLayer, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, chunk: int | None
) -> torch.Tensor:
    """Which slots of a ring of w one new token sees, `[B, w]`; `chunk`: only those of its own chunk of so many tokens,
    counted from the first that is no padding."""
    device = inputs_embeds.device
    positions, starts = ring.slot_positions(device)[None], 0
    visible = positions >= 0
    if attention_mask is not None:
        attended = attention_mask.to(device=device, dtype=torch.bool)
        if chunk is not None:
            starts = (attended.cumsum(dim=-1) == 0).sum(dim=-1, keepdim=True)
        # Behind the end of the mask there is no token.
        attended = F.pad(attended, (0, 1))
        visible = visible & attended[:, positions[0].clamp(0, attended.shape[1] - 1)]
    if chunk is not None:
        newest = ring.cumulative_length.to(device)
        chunks = ((place - starts).div(chunk, rounding_mode="floor") for place in (positions, newest))
        visible = visible & torch.eq(*chunks)
    return visible.expand(inputs_embeds.shape[0], -1)
