"""How the tokens of a batch are laid out for a recurrence: one sequence per row, its tokens side by side.

A recurrence runs over whatever stands in its row, so padding inside or behind a sequence, and several sequences in one
row, would leak into its state. Here they are moved apart before the mixer and back after it.

    mask      0 0 1 1 1      left padding, nothing cached: nothing moves, `valid` silences the zeros
              1 1 0 1 0      anything else: tokens move to the left of their row
    positions 0 1 2 0 1      packed sequences: one row each
"""

from typing import NamedTuple

import torch
from transformers.utils import is_torchdynamo_compiling


class TokenRows(NamedTuple):
    """A layout of B·L tokens in R rows of T: `index` `[R, T]` and `inverse` `[B, L]` count the other side's tokens.

    `valid` `[R, T]` says where a row holds a token, None for everywhere. `keep` `[B]` is the row whose state goes on,
    None for all of them. `positions` `[R, T]` are those of the tokens, where they are known.
    """

    valid: torch.Tensor | None = None
    index: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def pack(self, states):
        """`[B, L, ...]` -> `[R, T, ...]`."""
        return states if self.index is None else states.flatten(0, 1)[self.index]

    def unpack(self, states):
        """`[R, T, ...]` -> `[B, L, ...]`."""
        return states if self.inverse is None else states.flatten(0, 1)[self.inverse]

    def silence(self, states, value=0.0):
        """`[R, T, ...]` with `value` where there is no token."""
        if self.valid is None:
            return states
        return states.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (states.dim() - 2)), value)

    @property
    def moved(self):
        return self.index is not None

    def with_positions(self, position_ids):
        """The same layout, with positions `[B, L]` or `[1, L]` of the tokens; others (three per token) are left out."""
        if position_ids is None or position_ids.dim() != 2:
            return self
        if self.index is not None:
            position_ids = position_ids.expand(self.inverse.shape)
        return self._replace(positions=self.pack(position_ids))

    def first(self, states, has_history):
        """Where a sequence starts, `[R, T]` of the rows `states` `[R, T, ...]`."""
        if self.positions is not None:
            return self.positions == 0
        first = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
        if self.valid is not None and not self.moved:
            first = self.valid.cumsum(1) == 1
        else:
            first[:, 0] = True
        return first & (not has_history)


def _readable(tensor):
    """Whether a decision may look at the values: not while a graph is traced, not without data."""
    return not is_torchdynamo_compiling() and tensor.device.type != "meta"


def rows_of_mask(mask, has_history):
    """The layout for a padding mask `[B, L]` (1 for a token) of the tokens at hand."""
    mask = mask.bool()
    if not has_history and _readable(mask) and bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return TokenRows(valid=mask)
    length = mask.shape[1]
    order = torch.argsort(~mask, dim=1, stable=True)
    first = torch.arange(len(mask), device=mask.device).unsqueeze(1) * length
    return TokenRows(mask.gather(1, order), first + order, first + torch.argsort(order, dim=1))


def rows_of_sequences(starts):
    """The layout for rows that hold several sequences; `starts` `[B, L]` is set at each first token."""
    starts = starts.clone()
    starts[:, 0] = True
    batch, length = starts.shape
    number = starts.flatten().cumsum(0) - 1
    begin = starts.flatten().nonzero().squeeze(1)
    end = torch.cat([begin[1:], begin.new_tensor([batch * length])])
    width = int((end - begin).max())
    index = begin.unsqueeze(1) + torch.arange(width, device=starts.device)
    valid = index < end.unsqueeze(1)
    inverse = number * width + torch.arange(batch * length, device=starts.device) - begin[number]
    keep = number.view(batch, length)[:, -1]
    return TokenRows(valid, index.where(valid, begin.unsqueeze(1)), inverse.view(batch, length), keep)


def sequence_starts(position_ids, cu_seq_lens_q=None, seq_idx=None):
    """`[B, L]`, set where a sequence starts inside a row; None where every row is one sequence.

    Read from flash attention's cumulative lengths, from a number per token, or from positions that jump, as
    transformers' masks read them.
    """
    if cu_seq_lens_q is not None:
        starts = torch.zeros(1, int(cu_seq_lens_q[-1]), dtype=torch.bool, device=cu_seq_lens_q.device)
        starts[0, cu_seq_lens_q[:-1].long()] = True
    elif seq_idx is not None:
        starts = torch.nn.functional.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    elif position_ids is not None and position_ids.dim() == 2 and _readable(position_ids):
        starts = torch.nn.functional.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0))
    else:
        return None
    return starts if bool(starts[:, 1:].any()) else None


def arrange(hidden_states, attention_mask, memory, position_ids=None, cu_seq_lens_q=None, seq_idx=None, **kwargs):
    """The rows for `hidden_states` `[B, L, D]`; ValueError for what no row layout can make exact."""
    length = hidden_states.shape[1]
    if attention_mask is not None:
        rows = rows_of_mask(attention_mask[:, -length:], memory.has_history)
    elif length == 1 or memory.has_history:
        if cu_seq_lens_q is not None and len(cu_seq_lens_q) > 2:
            raise ValueError("Packed sequences (cu_seq_lens_q) cannot continue a cache of a recurrent layer.")
        return TokenRows()
    else:
        starts = sequence_starts(position_ids, cu_seq_lens_q, seq_idx)
        if starts is None:
            return TokenRows()
        rows = rows_of_sequences(starts.expand(hidden_states.shape[:2]))
    if rows.moved and memory.recording:
        raise ValueError(
            "Padding after or between the tokens of a sequence, or packed sequences, cannot be recorded for a rollback "
            "of a recurrent layer (assisted generation): pad on the left."
        )
    return rows
