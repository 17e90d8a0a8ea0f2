"""How the tokens of a batch are laid out for a recurrence: its tokens side by side, none but its own before them.

A recurrence runs over whatever stands in its row, so padding inside or behind a sequence would leak into its state.
Here tokens are moved together before the mixer and back after it.

    mask      0 0 1 1 1      left padding, nothing cached: nothing moves, `valid` silences the zeros
              1 1 0 1 0      anything else: tokens move to the left of their row
    packed    x . . x .      nothing moves: the state is forgotten at each start
"""

from typing import NamedTuple

import torch

from .ops_dispatch import is_traced
from .recurrent_packing import PackedSequences


class TokenRows(NamedTuple):
    """A layout of B·T tokens in B rows: `index` and `inverse` `[B, T]` count the other side's tokens, rows end to end.

    `valid` `[B, T]` says where a row holds a token, None for everywhere. `positions` `[B, T]` are those of the tokens,
    where they are known. `packed` tells where rows hold several sequences.
    """

    valid: torch.Tensor | None = None
    index: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    packed: PackedSequences | None = None

    def pack(self, states):
        """`[B, T, ...]`, tokens moved into their rows."""
        return states if self.index is None else states.flatten(0, 1)[self.index]

    def unpack(self, states):
        """`[B, T, ...]`, tokens moved back."""
        return states if self.inverse is None else states.flatten(0, 1)[self.inverse]

    def silence(self, states, value=0.0):
        """`[B, T, ...]` with `value` where there is no token."""
        if self.valid is None:
            return states
        return states.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (states.dim() - 2)), value)

    @property
    def moved(self):
        return self.index is not None

    def with_positions(self, position_ids):
        """The same layout, with positions `[B, T]` or `[1, T]` of the tokens; others (three per token) are left out."""
        if position_ids is None or position_ids.dim() != 2:
            return self
        if self.index is not None:
            position_ids = position_ids.expand(self.inverse.shape)
        return self._replace(positions=self.pack(position_ids))

    def first(self, states, has_history):
        """Where a sequence starts, `[B, T]` of the rows `states` `[B, T, ...]`."""
        if self.positions is not None:
            return self.positions == 0
        if self.packed is not None:
            return self.packed.starts
        first = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
        if self.valid is not None and not self.moved:
            first = self.valid.cumsum(1) == 1
        else:
            first[:, 0] = True
        return first & (not has_history)


def rows_of_mask(mask, has_history):
    """The layout for a padding mask `[B, T]` (1 for a token) of the tokens at hand."""
    mask = mask.bool()
    readable = not is_traced() and mask.device.type != "meta"
    if not has_history and readable and bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return TokenRows(valid=mask)
    length = mask.shape[1]
    order = torch.argsort(~mask, dim=1, stable=True)
    first = torch.arange(len(mask), device=mask.device).unsqueeze(1) * length
    return TokenRows(mask.gather(1, order), first + order, first + torch.argsort(order, dim=1))


def arrange(hidden_states, attention_mask, memory):
    """The rows for `hidden_states` `[B, T, D]` under what `create_recurrent_mask` makes; ValueError for what a cache
    that records its past could not take back."""
    if attention_mask is None:
        return TokenRows()
    if isinstance(attention_mask, PackedSequences):
        rows = TokenRows(packed=attention_mask)
    else:
        rows = rows_of_mask(attention_mask[:, -hidden_states.shape[1] :], memory.has_history)
    if memory.recording and (rows.moved or rows.packed is not None):
        raise ValueError(
            "Padding after or between the tokens of a sequence, or packed sequences, cannot be recorded for a rollback "
            "of a recurrent layer (assisted generation): pad on the left."
        )
    return rows
