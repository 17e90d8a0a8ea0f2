"""Cache layers of compressed attention: a window of tokens, entries of closed windows, tokens of the open one."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import StaticSlidingWindowLayer

from .cache_sliding import SlidingLayer
from .cache_storage import TokenBuffer

COMPRESSED_LAYER_TYPES = ("compressed_sparse_attention", "heavily_compressed_attention")
# The streams of a layer: what attention reads, and what its indexer does.
STREAMS = ("compressor", "indexer")
Parts = tuple[torch.Tensor, ...]


class CompressedStream:
    """Entries `[B, N, c]` that each stand for `rate` tokens of a row, and the tokens that no entry stands for yet.

    `open` holds per-token tensors `[B, o, ...]`, of which `held` are tokens of a row; the first `lead` of them belong
    to the window before. `closed` counts the entries of a row. Both are numbers while all rows have equally many, `[B]`
    where padding makes them differ.
    """

    def __init__(self):
        self.buffer = TokenBuffer()
        self.clear()

    def clear(self) -> None:
        self.buffer.clear()
        self.open, self.held, self.closed = None, 0, 0

    @property
    def entries(self) -> torch.Tensor | None:
        return self.buffer.tail()

    def counts(self, valid: torch.Tensor | None, length: int, rate: int, lead: int, device: Any) -> torch.Tensor:
        """How many entries each of `length` new tokens may read, `[B or 1, T]`: those of the windows that end at it or
        before; `valid` `[B, T]` tells tokens from padding."""
        before = self.closed * rate + self.held - (lead if self.open is not None else 0)
        if valid is None:
            places = torch.arange(1, length + 1, device=device)[None]
        else:
            places = valid.cumsum(dim=1)
        return (places + (before[:, None] if isinstance(before, torch.Tensor) else before)) // rate

    def extend(self, parts: Parts, valid: torch.Tensor | None, lead: Parts) -> tuple[Parts, int | torch.Tensor]:
        """New tokens behind the open ones, each row's without gaps, and how many of them are tokens: number or `[B]`.

        `lead` stands before the first token of all.
        """
        if self.open is None:
            self.open, self.held = lead, lead[0].shape[1]
        held = self.held
        joined = tuple(torch.cat((old.to(new.dtype), new), dim=1) for old, new in zip(self.open, parts, strict=True))
        if valid is None and not isinstance(held, torch.Tensor):
            return joined, joined[0].shape[1]
        batch, length, device = *parts[0].shape[:2], parts[0].device
        valid = torch.ones(batch, length, dtype=torch.bool, device=device) if valid is None else valid
        held = held if isinstance(held, torch.Tensor) else torch.full((batch,), held, device=device)
        slots = torch.arange(self.open[0].shape[1], device=device)
        valid = torch.cat((slots < held[:, None], valid), dim=1)
        order = torch.argsort(~valid, dim=1, stable=True)
        return tuple(rows_at(part, order) for part in joined), valid.sum(dim=1)

    def close(self, parts: Parts, held: int | torch.Tensor, new: torch.Tensor, rate: int, lead: int) -> torch.Tensor:
        """Entries `new` `[B, W, c]` of the windows that `parts` fill join the others, `[B, N, c]`; what is left stays
        open. Of a row with fewer tokens the last ones stand for nothing yet and are written again."""
        if not isinstance(held, torch.Tensor):
            done = new.shape[1] * rate
            self.open, self.held = tuple(part[:, done:].clone() for part in parts), held - done
            self.closed += new.shape[1]
            return self.buffer.append(new)
        closing = (held - lead) // rate
        closed = self.closed if isinstance(self.closed, torch.Tensor) else torch.full_like(held, self.closed)
        slots = torch.arange(rate + lead - 1, device=held.device)
        index = (closing[:, None] * rate + slots).clamp(max=parts[0].shape[1] - 1)
        self.open, self.held = tuple(rows_at(part, index) for part in parts), held - closing * rate
        old = new[:, :0] if self.entries is None else self.entries
        grown = torch.cat((old, torch.zeros_like(new)), dim=1)
        place = closed[:, None] + torch.arange(new.shape[1], device=held.device)
        grown = grown.scatter(1, place[..., None].expand_as(new), new)
        self.closed = closed + closing
        self.buffer.adopt(grown[:, : int(self.closed.max())])
        return self.entries

    def map_batch(self, function: Callable) -> None:
        """`function` on every tensor, which acts on the batch axis alone."""
        self.buffer.map_batch(function)
        if self.open is not None:
            self.open = tuple(function(part) for part in self.open)
        self.held, self.closed = (
            function(count) if isinstance(count, torch.Tensor) else count for count in (self.held, self.closed)
        )

    def to(self, device: torch.device | str) -> None:
        """Everything on another device."""
        if self.entries is not None:
            self.buffer.adopt(self.entries.to(device, non_blocking=True))
        if self.open is not None:
            self.open = tuple(part.to(device, non_blocking=True) for part in self.open)


def rows_at(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of `[B, L, ...]` the tokens at `index` `[B, n]` of each row."""
    return states.gather(1, index.view(*index.shape, *[1] * (states.dim() - 2)).expand(-1, -1, *states.shape[2:]))


class CompressedLayer(SlidingLayer):
    """The last tokens in a window, as keys that are values too, and a `CompressedStream` for attention and for its
    indexer."""

    def __init__(self, config: Any = None, sliding_window: int | None = None, **kwargs: Any):
        self.streams = {name: CompressedStream() for name in STREAMS}
        super().__init__(sliding_window=config.sliding_window if sliding_window is None else sliding_window)

    def crop(self, tokens_to_remove: int) -> None:
        """Raises RuntimeError: an entry cannot be taken apart."""
        raise RuntimeError(
            f"crop({tokens_to_remove}): entries of compressed attention cannot be taken back. Decode without "
            "assistant, prompt lookup or use_mtp, or start from an empty cache."
        )

    def activate_past_recording(self) -> None:
        """Raises RuntimeError, as `crop`."""
        self.crop(0)

    def _map_batch(self, function):
        super()._map_batch(function)
        for stream in self.streams.values():
            stream.map_batch(function)

    def offload(self) -> None:
        super().offload()
        for stream in self.streams.values():
            stream.to("cpu")

    def prefetch(self) -> None:
        super().prefetch()
        for stream in self.streams.values() if self.is_initialized else ():
            stream.to(self.device)

    def reset(self) -> None:
        super().reset()
        for stream in self.streams.values():
            stream.clear()


class StaticWindowLayer(StaticSlidingWindowLayer):
    """A window of fixed size, which holds no entries: how many there are depends on the tokens so far, so compressed
    attention refuses it."""

    def __init__(self, config: Any = None, max_cache_len: int = 0, **kwargs: Any):
        super().__init__(max_cache_len=max_cache_len, sliding_window=config.sliding_window)


def register_compressed_attention() -> None:
    """Tells transformers' caches which layers these are, unless the model that brings its own is loaded."""
    for table, layer in (("DYNAMIC", CompressedLayer), ("STATIC", StaticWindowLayer)):
        for name in COMPRESSED_LAYER_TYPES:
            getattr(cache_utils, f"{table}_LAYER_TYPE_MAPPING", {}).setdefault(name, layer)


register_compressed_attention()


def compressed_streams(cache: Any, layer_idx: int) -> dict[str, CompressedStream]:
    """The streams of layer `layer_idx` of a cache, new ones without a cache; raises ValueError for a cache whose layer
    holds no entries."""
    if cache is None:
        return {name: CompressedStream() for name in STREAMS}
    layers = getattr(cache, "layers", ())
    streams = getattr(layers[layer_idx], "streams", None) if layer_idx < len(layers) else None
    if streams is None:
        raise ValueError(
            f"Layer {layer_idx} of the cache cannot hold the entries of compressed attention, which has no cache of "
            "fixed size: pass an empty DynamicCache(config=model.config), or let generate make one."
        )
    return streams
