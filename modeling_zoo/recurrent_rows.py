"""How the tokens of a batch are laid out for a recurrence: each sequence without gaps and without padding before it.

A recurrence runs over whatever stands in its row, so padding inside or behind a sequence would leak into its state.
Here tokens are moved together before the mixer and back after it.

    mask      0 0 1 1 1      left padding, nothing cached: nothing moves, the padding is masked (`valid`)
              1 1 0 1 0      anything else: tokens move to the left of their row
    packed    x . . x .      nothing moves: the state is forgotten at each start
"""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_recurrent_attention_mask

from configuration_zoo import ZooConfig

from .cache_recurrent_view import RecurrentCacheView
from .ops_packing import PackedSequences, is_left_padded, packed_sequences


class TokenRows(NamedTuple):
    """Where the tokens of a batch stand while a recurrence runs over them.

    `index` `[B, T]`: for each place of the new layout the number of the token that moves there, rows end to end;
    `inverse` undoes it; both None where nothing moves. `valid` `[B, T]`: where the new layout holds a
    token, None for everywhere. `positions` `[B, T]` of the tokens, where they are known. `packed`: where rows hold
    several sequences.
    """

    valid: torch.Tensor | None = None
    index: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    packed: PackedSequences | None = None

    def unpad(self, states: torch.Tensor) -> torch.Tensor:
        """`[B, T, ...]`, each row's tokens moved together."""
        return states if self.index is None else states.flatten(0, 1)[self.index]

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """`[B, T, ...]`, tokens moved back to where `unpad` found them."""
        return states if self.inverse is None else states.flatten(0, 1)[self.inverse]

    def mask_padding(self, states: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        """`[B, T, ...]` with `value` where there is no token."""
        if self.valid is None:
            return states
        return states.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (states.dim() - 2)), value)

    @property
    def moved(self) -> bool:
        """Whether tokens stand elsewhere than in the input."""
        return self.index is not None

    def with_positions(self, position_ids: torch.Tensor | None) -> "TokenRows":
        """The same layout with its tokens' positions `[B, T]` or `[1, T]`; three per token (pictures) are left out."""
        if position_ids is None or position_ids.dim() != 2:
            return self
        if self.index is not None:
            position_ids = position_ids.expand(self.inverse.shape)
        return self._replace(positions=self.unpad(position_ids))

    def first(self, states: torch.Tensor, has_history: bool) -> torch.Tensor:
        """Where a sequence starts, `[B, T]` for `states` `[B, T, ...]` of this layout."""
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


class PaddedRows(NamedTuple):
    """A padding mask `[B, T]`, 1 for a token, and whether it hides nothing but what stands before the tokens of a row.

    That is asked once for all layers: on a device each answer is waited for.
    """

    mask: torch.Tensor
    left_padded: bool
    ndim = 2

    def contiguous(self) -> "PaddedRows":
        """The same without gaps, as generation asks of every mask."""
        return self._replace(mask=self.mask.contiguous())


def create_recurrent_mask(
    config: ZooConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> PaddedRows | PackedSequences | None:
    """Of the layers with a state: a padding mask `[B, T]`, `PackedSequences`, or None for T tokens of one sequence.

    Sequences are packed where transformers' masks for attention say so: without a mask and without a cache only.
    """
    if attention_mask is None and past_key_values is None:
        return packed_sequences(position_ids, inputs_embeds.shape[0])
    mask = create_recurrent_attention_mask(config, inputs_embeds, attention_mask, past_key_values)
    return None if mask is None else padded_rows(mask)


def padded_rows(mask: torch.Tensor) -> PaddedRows:
    """The padding mask `[B, T]` of the tokens at hand, looked at."""
    mask = mask.bool()
    return PaddedRows(mask, is_left_padded(mask))


def rows_of_mask(padded: PaddedRows, has_history: bool) -> TokenRows:
    """The layout for a padding mask."""
    mask = padded.mask
    if padded.left_padded and not has_history:
        return TokenRows(valid=mask)
    order = torch.argsort(~mask, dim=1, stable=True)
    row_start = torch.arange(len(mask), device=mask.device).unsqueeze(1) * mask.shape[1]
    return TokenRows(mask.gather(1, order), row_start + order, row_start + torch.argsort(order, dim=1))


def unpad(
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | PaddedRows | PackedSequences | None,
    cache: RecurrentCacheView,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, TokenRows]:
    """(`hidden_states` `[B, T, D]` without padding inside or behind its sequences, the layout, whose `pad` undoes it).

    `attention_mask` is what `create_recurrent_mask` makes, or a padding mask that is looked at here. Raises ValueError
    for a layout that a cache which records its past could not take back.
    """
    count = hidden_states.shape[1]
    if attention_mask is None:
        rows = TokenRows()
    elif isinstance(attention_mask, PackedSequences):
        rows = TokenRows(packed=attention_mask)
    else:
        padded = attention_mask if isinstance(attention_mask, PaddedRows) else padded_rows(attention_mask[:, -count:])
        rows = rows_of_mask(padded._replace(mask=padded.mask[:, -count:]), cache.has_history)
    if cache.recording and (rows.moved or rows.packed is not None):
        raise ValueError(
            "Padding after or between the tokens of a sequence, or packed sequences, cannot be recorded for a rollback "
            "of a recurrent layer (assisted generation): pad on the left."
        )
    return rows.unpad(hidden_states), rows.with_positions(position_ids)
