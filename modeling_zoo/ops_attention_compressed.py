"""Attention to a window of tokens and, beside it, to entries that each stand for several older ones.

keys      [ the window's tokens | entries of closed windows ]
query i     those it sees         the first counts[i] of them, or the chosen ones among these
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .ops_attention import attention
from .ops_attention_bands import AttentionMask, BandMask
from .ops_attention_indexer import top_positions
from .ops_attention_order import boolean_mask
from .ops_dispatch import has_values
from .ops_packing import PackedSequences

# Queries computed together.
ENTRY_BLOCK = 128


def pool_windows(
    kv: torch.Tensor, gate: torch.Tensor, position_bias: torch.Tensor, rate: int, overlap: bool
) -> torch.Tensor:
    """Σ_j softmax_j(gate_j + bias_j) ⊙ kv_j over windows of `rate` tokens, `[B, L, c]` → `[B, L // rate, c]`.

    With `overlap` the channels are two series, `[B, L, 2c]`, and a window reads the first series of the `rate` tokens
    before it beside its own second one: the L tokens start with a window before the first, which gives none itself.
    """
    count = kv.shape[1] // rate - overlap
    kv, gate = (x[:, : (count + overlap) * rate].unflatten(1, (-1, rate)) for x in (kv, gate))
    gate = gate.float() + position_bias.float()
    if overlap:
        (before, own), (before_gate, own_gate) = (x.chunk(2, dim=-1) for x in (kv, gate))
        kv = torch.cat((before[:, :-1], own[:, 1:]), dim=2)
        gate = torch.cat((before_gate[:, :-1], own_gate[:, 1:]), dim=2)
    return (kv * gate.softmax(dim=2).to(kv.dtype)).sum(dim=2)


def tokens_of(mask: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Which of `[B, T, D]` are tokens, `[B, T]`, None for all, by what recurrences are told of the rows; raises
    ValueError for packed sequences."""
    if isinstance(mask, PackedSequences):
        if has_values(mask.starts) and bool(mask.starts[:, 1:].any()):
            raise ValueError(
                "Packed sequences cannot be compressed, since a window would reach from one into the next: give each a "
                "row of its own, padded."
            )
        return None
    valid = None if mask is None else mask.mask[:, -hidden_states.shape[1] :]
    return None if valid is None or (has_values(valid) and bool(valid.all())) else valid


def compressed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    entries: torch.Tensor,
    counts: torch.Tensor,
    attention_mask: AttentionMask,
    chosen: Callable | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q [k, entries]ᵀ · scale) [k, entries] for `[B, H, T, d]`, `[B, K, S, d]` and `[B, K, N, d]`, which are
    keys and values at once → `[B, T, H, d]`, weights `[B, H, T, S + N]` or None.

    Query i sees the first `counts` `[B or 1, T]` entries, or those among them that `chosen(block, seen)` names,
    positions `[B, t, k]` for a slice of the queries and `seen` `[B or 1, t, N]`. One query gathers the chosen ones.
    """
    length, past = query.shape[2], key.shape[2] - query.shape[2]
    outputs, weights = [], []
    for start in range(0, length, ENTRY_BLOCK):
        block = slice(start, min(start + ENTRY_BLOCK, length))
        # The oldest key that the window of the block's first query can reach; tokens stand in order.
        first = 0 if length <= ENTRY_BLOCK else max(past + block.start - module.window + 1, 0)
        keys = slice(first, past + block.stop)
        visible = window_mask(attention_mask, block, keys, length, key.shape[2], query.device)
        own, seen = entries, entry_mask(counts[:, block], entries.shape[2])
        if chosen is not None and (positions := chosen(block, seen)) is not None:
            own, seen = chosen_entries(entries, positions, seen)
        visible, seen = (mask.expand(query.shape[0], -1, -1, -1) for mask in (visible, seen[:, None]))
        mask = as_backend(module, torch.cat((visible, seen), dim=-1), query.dtype)
        read = torch.cat((key[:, :, keys], own), dim=2)
        output, weight = attention(module, query[:, :, block], read, read, mask, **kwargs)
        outputs.append(output)
        weights.append(weight)
    return (outputs[0], weights[0]) if len(outputs) == 1 else (torch.cat(outputs, dim=1), None)


def window_mask(
    attention_mask: AttentionMask, block: slice, keys: slice, queries: int, total: int, device: torch.device
) -> torch.Tensor:
    """Which of `keys` the queries of `block` see, `[B or 1, 1, t, k]` of booleans."""
    if isinstance(attention_mask, BandMask):
        return attention_mask.block(block.start, block.stop, device, keys.start, keys.stop)
    if isinstance(attention_mask, torch.Tensor):
        attention_mask = attention_mask[:, :, block, keys]
        return boolean_mask(attention_mask, block.stop - block.start, keys.stop - keys.start, device)
    return boolean_mask(None, queries, total, device)[:, :, block, keys]


def entry_mask(counts: torch.Tensor, entries: int) -> torch.Tensor:
    """The first `counts` `[B, t]` of so many entries, `[B, t, N]`."""
    return torch.arange(entries, device=counts.device) < counts.unsqueeze(-1)


def best_entries(scores: torch.Tensor, seen: torch.Tensor, topk: int) -> torch.Tensor:
    """Positions `[B, t, k]` of the k highest scores `[B, t, N]` among those `seen`."""
    return top_positions(scores.masked_fill(~seen, -torch.inf), topk)


def chosen_entries(
    entries: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries to read and which of them each query sees: for one query the chosen ones `[B, K, k, d]`, for many
    all of them behind a mask."""
    if positions.shape[1] == 1:
        index = positions[:, None, 0, :, None].expand(-1, entries.shape[1], -1, entries.shape[3])
        return entries.gather(2, index), seen.expand(len(positions), -1, -1).gather(-1, positions)
    return entries, seen & torch.zeros_like(seen.expand(len(positions), -1, -1)).scatter(-1, positions, True)


def as_backend(module: nn.Module, visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of booleans as the backend of `module` takes it: eager attention adds numbers."""
    if module.config._attn_implementation != "eager":
        return visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
