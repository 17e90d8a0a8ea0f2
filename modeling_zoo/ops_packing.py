"""Where packed sequences start, several in one row, and how far each token stands behind that start.

positions     0 1 2 0 1 0 1
starts        x     x   x
places        0 1 2 0 1 0 1
"""

import torch
import torch.nn.functional as F


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
