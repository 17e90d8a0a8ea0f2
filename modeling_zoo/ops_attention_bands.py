"""Attention in bands: where a query sees a window of keys only, cost and memory grow with the window.

        keys 0 1 2 3 4 5 6 7
    query 4      x x x          queries 4 and 5, a block, see keys 2 ... 5 (`BandMask.span`)
          5        x x x
          6          x x x      queries 6 and 7 see keys 4 ... 7
          7            x x x

A mask of T queries over S keys holds T · S booleans, and attention computes as many scores, most of them only to be
hidden. A `BandMask` is the rule instead, asked for the mask of one block at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache

from .ops_packing import places_behind, starts_of_jumps


class BandMask:
    """Which of S keys each of T queries sees, as a rule: itself and the window - 1 before it (None: all before it).

    `first_query` and `first_key` are the positions of the first of each, padding counted. `chunked` keeps a query
    inside its own chunk of `window` tokens, counted from `starts` `[B]`. `padding` `[B, S]` is False for hidden
    keys; `segments` `[B, T]` numbers packed sequences, which do not see each other (queries and keys are the same
    tokens then), and `origins`, T numbers, are where the sequence that a token stands in starts, at the earliest over
    the rows.
    """

    def __init__(
        self,
        queries: int,
        keys: int,
        first_query: int = 0,
        first_key: int = 0,
        window: int | None = None,
        chunked: bool = False,
        origins: list[int] | None = None,
        **tensors: torch.Tensor | None,
    ):
        self.queries, self.keys = queries, keys
        # Query i stands where key i + offset does.
        self.offset = first_query - first_key
        self.first_key = first_key
        self.window, self.chunked, self.origins = window, chunked, origins
        self.tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self.cache = {}

    def to(self, *args: Any, **kwargs: Any) -> "BandMask":
        """The same rule with its tensors moved; called where layers stand on several devices."""
        sizes = (self.queries, self.keys, self.offset + self.first_key, self.first_key)
        moved = BandMask(*sizes, self.window, self.chunked, self.origins)
        moved.tensors = {name: tensor.to(*args, **kwargs) for name, tensor in self.tensors.items()}
        return moved

    def contiguous(self) -> "BandMask":
        """Itself: generation asks every mask for one without gaps."""
        return self

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 of the keys that some query of start … stop - 1 may see."""
        first = 0 if self.window is None else start + self.offset - self.window + 1
        first = first if self.origins is None else max(first, self.origins[start])
        return min(max(first, 0), self.keys - 1), min(stop + self.offset, self.keys)

    def block(
        self, start: int, stop: int, device: torch.device, first: int = 0, last: int | None = None
    ) -> torch.Tensor:
        """True where query start … stop - 1 sees key first … last - 1, `[B or 1, 1, t, k]`."""
        last = self.keys if last is None else last
        # Without tensors, blocks in the same place relative to their keys are one.
        place = (start - first, stop - first, last - first, str(device))
        if not self.tensors and place in self.cache:
            return self.cache[place]
        query = torch.arange(start, stop, device=device)[:, None] + self.offset
        key = torch.arange(first, last, device=device)
        visible = key <= query
        if self.window is not None:
            visible = visible & (query - key < self.window)
        visible = self._apply_padding(visible[None, None], query, key, slice(start, stop), slice(first, last))
        if not self.tensors and self.window is not None:
            self.cache[place] = visible
        return visible

    def _apply_padding(self, visible, query, key, queries, keys):
        """`visible` without what padding, chunks and packed sequences hide."""
        padding, starts, segments = (self.tensors.get(name) for name in ("padding", "starts", "segments"))
        if padding is not None:
            visible = visible & padding.to(visible.device)[:, None, None, keys]
        if self.chunked:
            start = starts.to(visible.device)[:, None, None, None] - self.first_key
            query_chunk, key_chunk = ((slots - start).div(self.window, rounding_mode="floor") for slots in (query, key))
            visible = visible & (query_chunk == key_chunk)
        if segments is not None:
            segments = segments.to(visible.device)[:, None]
            visible = visible & (segments[..., queries, None] == segments[..., None, keys])
        return visible


# What hides keys: booleans or numbers to add `[B or 1, H or 1, T, S]`, padding `[B, S]` for flash attention, flex
# attention's blocks, a rule; None leaves it to the backend, which then is causal.
AttentionMask = torch.Tensor | BlockMask | BandMask | None


def mask_rows(attention_mask: AttentionMask, block: slice, keys: int, device: torch.device) -> torch.Tensor:
    """The rows of the queries in `block` of a mask, tensor or rule, over the first `keys` keys, `[B or 1, 1, t, S]`."""
    if isinstance(attention_mask, BandMask):
        return attention_mask.block(block.start, block.stop, device, last=keys)
    return attention_mask[:, :, block, :keys]


def num_visible_keys(attention_mask: AttentionMask, block: slice, keys: int, causal: bool = False) -> int:
    """How many of the `keys` keys the queries in `block` may see at most; `causal`: from the first key on."""
    if isinstance(attention_mask, BandMask):
        return attention_mask.span(block.start, block.stop)[1]
    return block.stop if causal else keys


# -- attention over a band ---------------------------------------------------------------------------------------------


def banded_attention(
    attend: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, band: BandMask, block: int
) -> torch.Tensor:
    """`attend(query, key, value, mask)` for `block` queries after the other, each time over the keys they can see.

    `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, T, H, v]`; `attend` gives (output, weights).
    """
    outputs, start = [], 0
    for rows in query.split(block, dim=2):
        stop = start + rows.shape[2]
        first, last = band.span(start, stop)
        mask = band.block(start, stop, query.device, first, last)
        (keys, key), (values, value) = (slice_keys(states, first, last) for states in (key, value))
        outputs.append(attend(rows, keys, values, mask)[0])
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def slice_keys(states: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys first … last - 1 of `[B, K, S, d]`, and all of them to take the next slice from."""
    return KeySlice.apply(states, first, last) if torch.is_grad_enabled() else (states[:, :, first:last], states)


class KeySlice(torch.autograd.Function):
    """`slice_keys` where gradients are wanted: those of all slices are added up in one tensor, while the gradient of an
    ordinary slice is as large as all keys, for every slice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(states: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        return states[:, :, first:last], states.view_as(states)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        states, first, last = inputs
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.keys = states.shape, slice(first, last)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, gradient: torch.Tensor | None, others: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        if gradient is not None:
            others = gradient.new_zeros(ctx.shape) if others is None else others
            others[:, :, ctx.keys].add_(gradient)
        return others, None, None


# -- the rule of a call ------------------------------------------------------------------------------------------------


def band_mask(
    layer_type: str,
    window: int | None,
    layer_idx: int,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
) -> BandMask | None:
    """The rule for the layers of `layer_type`, of which `layer_idx` is the first, for `inputs_embeds` `[B, T, D]` and
    padding `[B, S]` or None; None where nothing but the future is hidden, or the rule cannot say what is."""
    length, device, chunked = inputs_embeds.shape[1], inputs_embeds.device, layer_type == "chunked_attention"
    sizes = _sizes(length, attention_mask, past_key_values, layer_idx)
    if sizes is None:
        return None
    first_query, keys, first_key = sizes
    tensors = _padding(attention_mask, first_key, keys, first_query + length, chunked, device)
    if attention_mask is None and past_key_values is None:
        tensors |= _packed(position_ids, inputs_embeds.shape[0])
        if chunked and "segments" in tensors:
            return None
    nothing_hidden = not any(part is not None for name, part in tensors.items() if name != "starts")
    if nothing_hidden and first_query == 0 and (window is None or window > keys == length):
        return None
    if chunked and tensors.get("starts") is None:
        tensors["starts"] = torch.zeros(1, dtype=torch.long, device=device)
    return BandMask(length, keys, first_query, first_key, window, chunked, **tensors)


def _sizes(length, attention_mask, past_key_values, layer_idx):
    """Position of the first query, number of keys, position of the first key; None where they cannot be known."""
    if past_key_values is None:
        # A longer padding mask belongs to keys from elsewhere (prefix tuning).
        fits = attention_mask is None or attention_mask.shape[-1] == length
        return (0, length, 0) if fits else None
    sizes = (past_key_values.get_query_offset(layer_idx), *past_key_values.get_mask_sizes(length, layer_idx))
    if any(isinstance(size, torch.Tensor) and size.device.type == "meta" for size in sizes):
        return None
    # A cache of fixed size counts on the device: looked at once for a prompt, where nothing is traced.
    return tuple(int(size) for size in sizes)


def _padding(attention_mask, first_key, keys, last_query, chunked, device):
    """{"padding": `[B, S]`, "starts": `[B]` the number of padded tokens on the left}, without padding: {}."""
    if attention_mask is None:
        return {}
    attended = attention_mask.to(device=device, dtype=torch.bool)
    # Positions behind the last query are hidden in any case.
    if attended.shape[-1] >= min(first_key + keys, last_query) and bool(attended.all()):
        return {}
    starts = (attended.cumsum(dim=-1) == 0).sum(dim=-1) if chunked else None
    missing = max(first_key + keys - attended.shape[-1], 0)
    padding = torch.nn.functional.pad(attended, (0, missing))[:, first_key : first_key + keys]
    return {"padding": padding, "starts": starts}


def _packed(position_ids, batch):
    """{"segments": numbers of the packed sequences `[B, T]`, "origins": where they start}; {} for one per row."""
    starts = None if position_ids is None else starts_of_jumps(position_ids)
    if starts is None or not bool(starts[:, 1:].any()):
        return {}
    places = places_behind(starts)
    origins = (torch.arange(places.shape[1], device=places.device) - places).amin(0)
    return {"segments": starts.cumsum(dim=-1).expand(batch, -1), "origins": origins.tolist()}
