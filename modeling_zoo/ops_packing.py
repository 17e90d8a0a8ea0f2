"""Packed sequences: several in one row, one behind the other, without padding and without seeing each other.

    positions     0 1 2 0 1 0 1
    starts        x     x   x
    places        0 1 2 0 1 0 1

Attention hides the keys of the other sequences. A recurrence forgets its state at each start, a convolution reads zeros
where it would reach back across one: no token moves, and a packed row costs what any row of that length costs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .ops_dispatch import has_values, is_traced
from .ops_recurrence_fla import has_kernels


def places_behind(starts: torch.Tensor) -> torch.Tensor:
    """How far each token stands behind the last start, `[B, T]`."""
    slots = torch.arange(starts.shape[1], device=starts.device)
    return slots - slots.where(starts, 0).cummax(dim=1).values


def starts_of_jumps(position_ids: torch.Tensor) -> torch.Tensor:
    """`[B, T]`, set where positions do not count on: transformers' own rule (`find_packed_sequence_indices`)."""
    return F.pad(position_ids.diff(dim=1) != 1, (1, 0), value=True)


def starts_of_lengths(
    like: torch.Tensor, cu_seq_lens_q: torch.Tensor | None = None, seq_idx: torch.Tensor | None = None
) -> torch.Tensor:
    """`[B, T]` for tokens `like` `[B, T, ...]`, from what a collator says for flash attention or Mamba's kernels:
    cumulative lengths, rows end to end, or a number per token."""
    if cu_seq_lens_q is None:
        return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
    batch, length = like.shape[:2]
    starts = torch.zeros(batch * length + 1, dtype=torch.bool, device=like.device)
    starts = starts.index_fill(0, cu_seq_lens_q.long().to(like.device), True)[:-1].view(batch, length)
    return starts | (torch.arange(length, device=like.device) == 0)


class PackedSequences(NamedTuple):
    """What a recurrent layer is given in place of a padding mask, for rows of T tokens.

    `starts` `[B, T]` is set at each first token of a sequence; `places` `[B, T]` is how far a token stands behind that
    one. `cu_seqlens` `[N + 1]`, where kernels ask for it: the starts of all N sequences, rows end to end, and B · T.
    """

    starts: torch.Tensor
    places: torch.Tensor
    cu_seqlens: torch.Tensor | None = None

    # As a padding mask has.
    ndim = 2

    def cumulative_lengths(self) -> torch.Tensor:
        """`cu_seqlens`, counted now if it was not given: this waits for the device."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens
        return F.pad(self.starts.flatten().nonzero().squeeze(1), (0, 1), value=self.starts.numel())

    def last_in_row(self) -> torch.Tensor:
        """Number of the last sequence of each row, `[B]`."""
        return self.starts.sum(1).cumsum(0) - 1


def packed_sequences(position_ids: torch.Tensor | None, batch: int) -> PackedSequences | None:
    """What is packed in `batch` rows, by their positions `[B or 1, T]`; None for one sequence per row.

    On an accelerator, and in a traced graph, rows are not searched for a second sequence, since that would wait
    for the device: `starts` is then used in either case. Kernels that need the lengths on the CPU wait anyway.
    """
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] == 1:
        return None
    starts = starts_of_jumps(position_ids.expand(batch, -1))
    counted = has_kernels(starts.device) and not is_traced()
    if (counted or (starts.device.type == "cpu" and not is_traced())) and not bool(starts[:, 1:].any()):
        return None
    packed = PackedSequences(starts, places_behind(starts))
    return packed._replace(cu_seqlens=packed.cumulative_lengths()) if counted else packed


def within_sequences(packed: PackedSequences, pattern: Callable | None = None) -> Callable:
    """A rule for transformers' masks: of the same sequence, and in `pattern` as slots count within it."""
    numbers, places = packed.starts.cumsum(1), packed.places

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        same = numbers[batch_idx, q_idx] == numbers[batch_idx, kv_idx]
        if pattern is None:
            return same
        return same & pattern(batch_idx, head_idx, places[batch_idx, q_idx], places[batch_idx, kv_idx])

    return visible


def is_left_padded(mask: torch.Tensor) -> bool:
    """Whether in every row of a padding mask `[B, T]` (1 for a token) the tokens stand together at the end; False where
    the mask cannot be looked at: in a traced graph, on the meta device."""
    return has_values(mask) and bool((mask[:, 1:] >= mask[:, :-1]).all())
