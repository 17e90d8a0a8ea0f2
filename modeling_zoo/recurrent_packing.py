"""Packed sequences: several in one row, one behind the other, without padding and without seeing each other.

    positions     0 1 2 0 1 0 1
    starts        x     x   x
    places        0 1 2 0 1 0 1

Attention hides the keys of the other sequences. A recurrence forgets its state at each start, a convolution reads zeros
where it would reach back across one: no token moves, and a packed row costs what any row of that length costs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.masking_utils import create_recurrent_attention_mask

from .ops_dispatch import is_traced
from .ops_packing import places_behind, starts_of_jumps
from .ops_recurrence_fla import has_kernels


class PackedSequences(NamedTuple):
    """What a recurrent layer is given in the place of a padding mask, for rows of T tokens.

    `starts` `[B, T]` is set at each first token of a sequence; `places` `[B, T]` is how far a token stands behind that
    one. `cu_seqlens` `[N + 1]`, where kernels ask for it: the starts of all N sequences, rows end to end, and B · T.
    """

    starts: torch.Tensor
    places: torch.Tensor
    cu_seqlens: torch.Tensor | None = None

    # As a padding mask has.
    ndim = 2

    def cumulative_lengths(self):
        """`cu_seqlens`, counted now where nobody has before: a device is waited for."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens
        return F.pad(self.starts.flatten().nonzero().squeeze(1), (0, 1), value=self.starts.numel())

    def last_in_row(self):
        """Number of the last sequence of each row, `[B]`."""
        return self.starts.sum(1).cumsum(0) - 1


def packed_sequences(position_ids, batch):
    """What is packed in `batch` rows, by their positions `[B or 1, T]`; None for one sequence per row.

    A device would have to be waited for to tell: unless a kernel has to wait for it anyway, there every start is acted
    on, if there is one or not.
    """
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] == 1:
        return None
    starts = starts_of_jumps(position_ids.expand(batch, -1))
    counted = has_kernels(starts.device) and not is_traced()
    if (counted or (starts.device.type == "cpu" and not is_traced())) and not bool(starts[:, 1:].any()):
        return None
    packed = PackedSequences(starts, places_behind(starts))
    return packed._replace(cu_seqlens=packed.cumulative_lengths()) if counted else packed


def within_sequences(packed, pattern=None):
    """A rule for transformers' masks: of the same sequence, and in `pattern` as slots count within it."""
    numbers, places = packed.starts.cumsum(1), packed.places

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        same = numbers[batch_idx, q_idx] == numbers[batch_idx, kv_idx]
        if pattern is None:
            return same
        return same & pattern(batch_idx, head_idx, places[batch_idx, q_idx], places[batch_idx, kv_idx])

    return visible


def create_recurrent_mask(config, inputs_embeds, attention_mask, past_key_values=None, position_ids=None, **kwargs):
    """Of the layers with a state: a padding mask `[B, T]`, `PackedSequences`, or None for T tokens of one sequence.

    Sequences are packed where transformers' masks for attention say so: without a mask and without a cache only.
    """
    if attention_mask is None and past_key_values is None:
        return packed_sequences(position_ids, inputs_embeds.shape[0])
    return create_recurrent_attention_mask(config, inputs_embeds, attention_mask, past_key_values)
