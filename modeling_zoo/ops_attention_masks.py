"""Masks that transformers' builders cannot make without waiting for the device: numbers to add for the plain backend,
which they copy from the host for every token, and those over a ring of slots.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache, StaticLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, sdpa_mask

from configuration_zoo import ZooConfig

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


def ring_of(cache: Cache | None, layer_idx: int) -> StaticLayer | None:
    """The ring that layer `layer_idx` keeps its tokens in; None where its cache is no ring, or there is none yet."""
    layers = getattr(cache, "layers", ())
    kept = layers[layer_idx] if layer_idx < len(layers) else None
    # A layer with a recurrence beside it says so for its attention.
    return kept if hasattr(kept, "slot_positions") else None


def ring_mask(
    build: Callable,
    config: ZooConfig,
    chunk: int | None,
    layer_idx: int,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
) -> torch.Tensor | BlockMask | None:
    """The mask of one new token over the slots of a ring, in the form of the backend that `config` names; by `build()`
    where layer `layer_idx` keeps none, for many tokens, and for a ready mask."""
    ring = ring_of(past_key_values, layer_idx)
    ready = attention_mask is not None and attention_mask.ndim != 2
    if ready or ring is None or inputs_embeds.shape[1] != 1:
        return build()
    visible = visible_slots(ring, inputs_embeds, attention_mask, chunk)
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=inputs_embeds.shape[0],
        q_length=1,
        kv_length=visible.shape[1],
        q_offset=0,
        kv_offset=0,
        mask_function=lambda batch_idx, head_idx, q_idx, kv_idx: visible[batch_idx, kv_idx],
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=inputs_embeds.dtype,
        config=config,
        use_vmap=False,
        device=inputs_embeds.device,
    )
