"""Which blocks of keys a query reads, and attention over these alone: `select_blocks` and `block_attention`.

Blocks are counted from the first key that a query sees, so that padding and sequences packed before it change nothing.
The plain form hides the keys of all other blocks by a mask; then comes the form that gathers the chosen ones, whose
cost for a query is that of `index_topk` keys, whatever the length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .ops_attention import attention
from .ops_attention_bands import AttentionMask, num_visible_keys
from .ops_attention_indexer import QUERY_BLOCK, top_positions, visible_keys

# Booleans of a mask, one for each head, that are held at once; numbers of gathered keys and values.
MOST_MASKED, MOST_READ = 2**28, 2**24
# Reading a key apart, for one query, takes as long as computing with so many that all queries share.
READ_APART_COST = 4


class ChosenBlocks(NamedTuple):
    """The blocks each query reads for each head of an indexer, `[B, h, T, n]`, -1 for none, and the first key that the
    query sees, `[B or 1, T]`."""

    blocks: torch.Tensor
    first: torch.Tensor


def seen_span(visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last key each query sees, `[B or 1, 1, t, S]` → twice `[B or 1, t]`; 0 and the last of all
    where it sees none."""
    seen = visible[:, 0].to(torch.uint8)
    return seen.argmax(dim=-1), seen.shape[-1] - 1 - seen.flip(-1).argmax(dim=-1)


def block_maxima(scores: torch.Tensor, first: torch.Tensor, size: int) -> torch.Tensor:
    """The best score in each block of `size` keys from key `first` on, `[B, h, t, S]` and `[B or 1, t]` → `[B, h, t, S
    / size]`, rounded up; -inf for a block without a key."""
    blocks = key_blocks(scores.shape[-1], first, size)[:, None].expand_as(scores)
    count = -(-scores.shape[-1] // size)
    return scores.new_full((*scores.shape[:-1], count), -torch.inf).scatter_reduce(-1, blocks, scores, "amax")


def key_blocks(keys: int, first: torch.Tensor, size: int) -> torch.Tensor:
    """The block of each of `keys` keys as the queries `[B or 1, t]` count them, `[B or 1, t, keys]`; 0 before it."""
    return (torch.arange(keys, device=first.device) - first[..., None]).clamp(min=0) // size


def best_blocks(
    scores: torch.Tensor, visible: torch.Tensor, size: int, count: int, local: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`count` blocks `[B, h, t, n]`, first keys `[B or 1, t]`) of scores `[B, h, t, S]`, the `local` ones up to that
    of the query among them."""
    first, last = seen_span(visible)
    found = block_maxima(scores.masked_fill(~visible, -torch.inf), first, size)
    own = ((last - first) // size)[:, None, :, None] - torch.arange(local, device=first.device)
    own = own.clamp(min=0).expand(*found.shape[:3], -1)
    found = found.scatter(-1, own, torch.inf)
    chosen = top_positions(found, min(count, found.shape[-1]))
    return chosen.masked_fill(found.gather(-1, chosen) == -torch.inf, -1).int(), first


def select_blocks(
    scores: Callable, key: torch.Tensor, size: int, count: int, local: int, queries: int, attention_mask: AttentionMask
) -> ChosenBlocks | None:
    """The `count` blocks of `size` keys of `[B, S, d]` that hold the best key of each of `queries` queries, `local`
    ones up to its own always; None where there are no more blocks than that.

    `scores(key, block)` gives `[B, h, t, S]` for a slice of the queries. No mask means causal from the first key on.
    """
    causal = attention_mask is None and queries > 1
    if causal:
        key = key[:, :queries]
    if key.shape[1] <= size * count:
        return None
    chosen, firsts = [], []
    for start in range(0, queries, QUERY_BLOCK):
        block = slice(start, min(start + QUERY_BLOCK, queries))
        seen = num_visible_keys(attention_mask, block, key.shape[1], causal)
        # As many columns for all queries.
        seen = max(seen, min(size * count, key.shape[1]))
        visible = visible_blocks(attention_mask, block, queries, seen, key.device)
        blocks, first = best_blocks(scores(key[:, :seen], block), visible, size, count, local)
        chosen.append(blocks)
        firsts.append(first)
    return ChosenBlocks(torch.cat(chosen, dim=2), torch.cat(firsts, dim=1))


def visible_blocks(
    attention_mask: AttentionMask, block: slice, queries: int, keys: int, device: torch.device
) -> torch.Tensor:
    """`visible_keys`, where one query without a mask sees every key."""
    if attention_mask is None and queries == 1:
        return torch.ones(1, 1, 1, keys, dtype=torch.bool, device=device)
    return visible_keys(attention_mask, block, keys, device)


# -- the plain form: a mask --------------------------------------------------------------------------------------------


def masked_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    chosen: ChosenBlocks,
    size: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over all keys, those of other blocks hidden, so many queries at a time as memory bounds."""
    batch, heads, length, _ = query.shape
    step, causal = max(1, MOST_MASKED // (batch * heads * key.shape[2])), attention_mask is None and length > 1
    outputs, weights = [], []
    for start in range(0, length, step):
        block = slice(start, min(start + step, length))
        seen = key.shape[2] if length <= step else num_visible_keys(attention_mask, block, key.shape[2], causal)
        mask = block_mask(module, attention_mask, chosen, block, length, seen, size, query.dtype)
        output, weight = attention(module, query[:, :, block], key[:, :, :seen], value[:, :, :seen], mask, **kwargs)
        outputs.append(output)
        weights.append(weight if weight is None else nn.functional.pad(weight, (0, key.shape[2] - seen)))
    if len(outputs) == 1:
        return outputs[0], weights[0]
    return torch.cat(outputs, dim=1), None if weights[0] is None else torch.cat(weights, dim=2)


def block_mask(
    module: nn.Module,
    attention_mask: AttentionMask,
    chosen: ChosenBlocks,
    block: slice,
    queries: int,
    keys: int,
    size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The mask of the queries in `block` over the first `keys` keys, `[B, H, t, keys]`: booleans, or numbers to add
    for the plain backend."""
    blocks, count = chosen.blocks[:, :, block].long(), -(-keys // size)
    read = torch.zeros(*blocks.shape[:3], count + 1, dtype=torch.bool, device=blocks.device)
    read = read.scatter(-1, torch.where((blocks < 0) | (blocks > count), count, blocks), True)
    places = key_blocks(keys, chosen.first[:, block], size)[:, None]
    allowed = read.gather(-1, places.expand(*blocks.shape[:3], -1))
    allowed = allowed & visible_blocks(attention_mask, block, queries, keys, blocks.device)
    allowed = allowed.repeat_interleave(module.config.num_attention_heads // blocks.shape[1], dim=1)
    if module.config._attn_implementation != "eager":
        return allowed
    return torch.zeros((), dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


# -- which form --------------------------------------------------------------------------------------------------------


def block_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    chosen: ChosenBlocks,
    size: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the keys of the chosen blocks alone: `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H,
    v]`, weights or None).

    The plain backend masks: it is what the others are compared with, and shows weights for all keys. Gradients would
    have to keep every gathered key.
    """
    length = query.shape[2]
    if attention_mask is None and length > 1:
        # Causal from the first key on: a cache of fixed size has nothing behind the last query.
        key, value = key[:, :, :length], value[:, :, :length]
    call = module, query, key, value, attention_mask, chosen, size
    plain = module.config._attn_implementation == "eager" or torch.is_grad_enabled()
    shared = key.shape[2] // 2 if attention_mask is None and length > 1 else key.shape[2]
    if plain or (length > 1 and shared < READ_APART_COST * size * chosen.blocks.shape[-1]):
        return masked_blocks(*call, **kwargs)
    return gathered_blocks(*call, **kwargs), None


# -- gathered: the keys of the chosen blocks alone ---------------------------------------------------------------------


def gathered_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    chosen: ChosenBlocks,
    size: int,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention of each query over keys and values of its own, `[B, T, H, v]`, of so many queries at once as memory
    bounds."""
    batch, heads, length, _ = query.shape
    numbers = batch * key.shape[1] * size * chosen.blocks.shape[-1] * (key.shape[-1] + value.shape[-1])
    outputs, step = [], max(1, MOST_READ // numbers)
    kwargs.pop("position_ids", None)
    for start in range(0, length, step):
        block = slice(start, min(start + step, length))
        positions, read = block_positions(attention_mask, chosen, block, length, key.shape[2], size)
        rows = [take_head_rows(part, positions) for part in (key, value)]
        read = read.repeat_interleave(heads // read.shape[1], dim=1).transpose(1, 2).flatten(0, 1).unsqueeze(2)
        alone = query[:, :, block].transpose(1, 2).flatten(0, 1).unsqueeze(2)
        output, _ = attention(module, alone, *rows, read, **kwargs)
        outputs.append(output.view(batch, -1, heads, value.shape[-1]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def block_positions(
    attention_mask: AttentionMask, chosen: ChosenBlocks, block: slice, queries: int, keys: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys in the blocks of the queries in `block`, and which of them they read, twice `[B, h, t, n · size]`."""
    blocks = chosen.blocks[:, :, block].long()
    inside = torch.arange(size, device=blocks.device)
    positions = (blocks[..., None] * size + inside).flatten(-2) + chosen.first[:, None, block, None]
    read = (blocks >= 0)[..., None].expand(*blocks.shape, size).flatten(-2) & (positions < keys)
    positions = positions.clamp(min=0, max=keys - 1)
    if attention_mask is not None or queries > 1:
        visible = visible_keys(attention_mask, block, keys, blocks.device)
        read = read & visible.expand(*blocks.shape[:3], -1).gather(-1, positions)
    return positions, read


def take_head_rows(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`[B, K, S, d]` at `[B, h, t, n]` → `[B · t, K, n, d]`, h heads of an indexer for K of keys."""
    batch, heads = states.shape[:2]
    positions = positions.repeat_interleave(heads // positions.shape[1], dim=1)
    if states.device.type == "cpu":
        # Indexing by several tensors goes element by element there.
        flat = zip(states.flatten(0, 1), positions.flatten(0, 1), strict=True)
        rows = torch.stack([head.index_select(0, at.flatten()) for head, at in flat])
        rows = rows.view(batch, heads, *positions.shape[2:], -1)
    else:
        entries = torch.arange(batch, device=states.device).view(-1, 1, 1, 1)
        rows = states[entries, torch.arange(heads, device=states.device).view(-1, 1, 1), positions]
    return rows.transpose(1, 2).flatten(0, 1)
