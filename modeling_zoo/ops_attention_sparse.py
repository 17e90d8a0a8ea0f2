"""Latent attention in which every query reads the keys chosen for it: `sparse_attention`, which the mixer calls.

The plain form hides all other keys by a mask. Then comes the choice, then the form that gathers the chosen latents:
its cost is k per query, whatever the length.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .ops_attention_bands import AttentionMask, mask_rows, num_visible_keys
from .ops_attention_indexer import visible_keys
from .ops_attention_latent import (
    absorbable_maps,
    absorbed,
    attend_expanded,
    attend_heads,
    attend_latents,
    cached_latents,
    maps_if_cheaper,
    read_latents,
)
from .ops_attention_triton import split_decode, use_triton

# Queries that are masked and read together; numbers of gathered latents held at once.
READING_BLOCK = 512
MOST_GATHERED = 2**24

Queries = tuple[torch.Tensor, torch.Tensor]

# -- the plain form: a mask --------------------------------------------------------------------------------------------


def masked_attention(
    module: nn.Module,
    query: Queries,
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    past_key_values: Cache | None,
    positions: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over all keys with those not chosen hidden, absorbed or expanded as `latent_attention` would."""
    maps = absorbable_maps(module, query[0], latent, attention_mask, past_key_values)
    if maps is not None:
        whole = slice(0, query[0].shape[2])
        mask = sparse_mask(module, attention_mask, positions, whole, latent.shape[2], query[0].dtype)
        attend = partial(attend_latents, module, mask, past_key_values, **kwargs)
        return absorbed(query, maps, latent, rope_key, attend)
    attend = partial(attend_in_query_blocks, module, attention_mask=attention_mask, positions=positions, **kwargs)
    return attend_expanded(module, query, latent, rope_key, attend)


def attend_in_query_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    positions: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Expanded queries, keys and values of some heads → (`[B, T, h, v]`, weights or None), masked a block of queries at
    a time, so that memory grows with the keys and not with their square."""
    length, keys = query.shape[2], key.shape[2]
    outputs, weights = [], []
    for start in range(0, length, READING_BLOCK):
        block = slice(start, min(start + READING_BLOCK, length))
        visible = num_visible_keys(attention_mask, block, keys, causal=attention_mask is None and length > 1)
        mask = sparse_mask(module, attention_mask, positions, block, visible, query.dtype)
        output, weight = attend_heads(
            module, query[:, :, block], key[:, :, :visible], value[:, :, :visible], mask, **kwargs
        )
        outputs.append(output)
        weights.append(weight)
    return torch.cat(outputs, dim=1), None if weights[0] is None else torch.cat(weights, dim=2)


def sparse_mask(
    module: nn.Module,
    attention_mask: AttentionMask,
    positions: torch.Tensor,
    block: slice,
    keys: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The mask of the queries in `block` with the keys not chosen hidden, `[B, 1, t, keys]`: booleans, or numbers to
    add where the mask has numbers or the backend of `module` wants them."""
    allowed = chosen_keys(positions[:, block], keys)
    rows = None if attention_mask is None else mask_rows(attention_mask, block, keys, allowed.device)
    if rows is not None and rows.dtype != torch.bool:
        return rows.masked_fill(~allowed, torch.finfo(rows.dtype).min)
    if rows is not None:
        allowed = rows & allowed
    elif positions.shape[1] > 1:
        allowed = allowed & visible_keys(None, block, keys, allowed.device)
    if module.config._attn_implementation != "eager":
        return allowed
    return torch.zeros((), dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def chosen_keys(positions: torch.Tensor, keys: int) -> torch.Tensor:
    """Positions `[B, T, k]` → True where a key was chosen, `[B, 1, T, keys]`; those beyond the keys are left out."""
    chosen = torch.zeros(*positions.shape[:2], keys + 1, dtype=torch.bool, device=positions.device)
    return chosen.scatter_(-1, positions.long().clamp(max=keys), True)[:, None, :, :keys]


# -- which form --------------------------------------------------------------------------------------------------------


def sparse_attention(
    module: nn.Module,
    query: Queries,
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    past_key_values: Cache | None,
    positions: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`latent_attention` over the keys at `positions` `[B, T, k]` alone → (`[B, T, H, v]`, weights or None)."""
    if attention_mask is None and query[0].shape[2] > 1:
        # Causal from the first key on: a cache of fixed size has nothing behind the last query.
        latent, rope_key = (part[:, :, : query[0].shape[2]] for part in (latent, rope_key))
    call = query, latent, rope_key, attention_mask, past_key_values, positions
    maps = gatherable_maps(module, query[0], latent, attention_mask, positions)
    if maps is not None:
        return gathered_attention(module, *call, maps), None
    return masked_attention(module, *call, **kwargs)


def gatherable_maps(
    module: nn.Module, query: torch.Tensor, latent: torch.Tensor, attention_mask: AttentionMask, positions: torch.Tensor
) -> torch.Tensor | None:
    """U and V `[K, n + v, c]` where gathering the chosen latents is possible and cheaper than masking, else None.

    The plain backend masks: it is what the others are compared with, and shows weights for all keys. Gradients would
    have to keep every gathered latent.
    """
    if module.config._attn_implementation == "eager" or torch.is_grad_enabled():
        return None
    queries, keys = query.shape[2], latent.shape[2]
    causal = attention_mask is None and queries > 1
    pairs = queries * keys // 2 if causal else queries * keys, queries * positions.shape[-1]
    return maps_if_cheaper(module, query, latent, pairs)


# -- gathered: the chosen latents alone, in absorbed form --------------------------------------------------------------


def gathered_attention(
    module: nn.Module,
    query: Queries,
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    past_key_values: Cache | None,
    positions: torch.Tensor,
    maps: torch.Tensor,
) -> torch.Tensor:
    """Attention over the chosen latents alone, `[B, T, H, v]`: each query has keys of its own."""

    def attend(query, latent, rope_key):
        keys = cached_latents(latent, rope_key, past_key_values, module.layer_idx)
        one_read = query[0].shape[2] == 1 and len(keys) == 1
        form = read_in_place if one_read and kernel_suits(module, latent) else read_gathered
        return form(module, query, keys, attention_mask, positions), None

    return absorbed(query, maps, latent, rope_key, attend)[0]


def read_gathered(
    module: nn.Module,
    query: Queries,
    keys: tuple[torch.Tensor, ...],
    attention_mask: AttentionMask,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Queries `[B, H, T, c]` and `[B, H, T, r]` over copies of the chosen rows of `keys` → `[B, H, T, c]`, of so many
    queries at once as memory bounds."""
    batch, heads, length, _ = query[0].shape
    step = max(1, MOST_GATHERED // (batch * positions.shape[-1] * (module.rank + module.rope)))
    contexts = []
    for start in range(0, length, step):
        block = slice(start, min(start + step, length))
        here = positions[:, block]
        chosen = [take_rows(part, here).flatten(0, 1) for part in keys]
        visible = chosen_visible(attention_mask, here, block, length, keys[0].shape[1])
        rows = [part[:, :, block].transpose(1, 2).flatten(0, 1).unsqueeze(2) for part in query]
        context, _ = read_latents(module, rows, chosen, mask=visible)
        contexts.append(context.view(batch, -1, heads, module.rank))
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1)
    return context.transpose(1, 2)


def take_rows(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`[B, S, d]` at `[B, T, k]` → `[B, T, k, d]`."""
    if states.device.type == "cpu":
        # Indexing by two tensors goes element by element there.
        rows = [entry.index_select(0, at.flatten()) for entry, at in zip(states, positions, strict=True)]
        return torch.stack(rows).unflatten(1, positions.shape[1:])
    entries = torch.arange(states.shape[0], device=states.device).view(-1, 1, 1)
    return states[entries, positions.long()]


def chosen_visible(
    attention_mask: AttentionMask, positions: torch.Tensor, block: slice, queries: int, keys: int
) -> torch.Tensor | None:
    """Whether a chosen key may be seen, `[B · t, 1, 1, k]`: where few are visible, others fill up the choice."""
    if attention_mask is not None:
        visible = visible_keys(attention_mask, block, keys, positions.device)[:, 0]
        visible = visible.expand(positions.shape[0], -1, -1).gather(-1, positions.long())
    elif queries > 1:
        visible = positions <= torch.arange(block.start, block.stop, device=positions.device)[:, None]
    else:
        return None
    return visible.flatten(0, 1)[:, None, None]


def kernel_suits(module: nn.Module, latent: torch.Tensor) -> bool:
    """Whether the kernels for a decoded token are there and compute all that this layer needs."""
    return use_triton(latent) and module.sink_logits is None and module.softcap is None and not module.upcast


def read_in_place(
    module: nn.Module, query: Queries, keys: tuple[torch.Tensor], attention_mask: AttentionMask, positions: torch.Tensor
) -> torch.Tensor:
    """One query per head over the chosen rows of `[B, S, c + r]` where they lie, by the kernels → `[B, H, 1, c]`."""
    visible = chosen_visible(attention_mask, positions, slice(0, 1), 1, keys[0].shape[1])
    query, key = torch.cat(query, dim=-1).transpose(1, 2), keys[0].unsqueeze(1)
    visible = None if visible is None else visible[:, 0, 0]
    context = split_decode(query, key, None, module.rank, module.scaling, positions[:, 0], visible)
    return context.transpose(1, 2)
