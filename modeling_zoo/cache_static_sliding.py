"""Static cache layers of a sliding (or chunked) window: a ring of slots, of which the device alone keeps count."""

from typing import Any

import torch
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from .cache_static import StaticLatentLayer, write_at


class StaticSlidingLayer(StaticSlidingWindowLayer):
    """The last w tokens in w slots, `[B, H, w, D]`: token p stands in slot p mod w.

        tokens   0 1 2 3 4 5     w = 4
        slots    4 5 2 3         slot_positions

    One token is written over the one that leaves the window: no copy of the window, and no number in Python that would
    be an input of a compiled step. It gets all slots back, in their own order, and needs a mask made from
    `slot_positions`. More tokens at once get the keys before them and themselves, in the order of their positions.
    """

    def __init__(self, max_cache_len: int, sliding_window: int | None = None, **kwargs: Any):
        size = max_cache_len if sliding_window is None else min(sliding_window, max_cache_len)
        # Not the class between, which counts in Python.
        StaticLayer.__init__(self, max_cache_len=size)
        # How many tokens were seen, None where only the device knows: a compiled step does not look at it.
        self.known_length: int | None = 0

    def num_seen(self) -> int:
        """How many tokens were seen: behind single tokens this waits for the device."""
        if self.known_length is None:
            self.known_length = int(self.cumulative_length)
        return self.known_length

    def slot_positions(self, device: torch.device) -> torch.Tensor:
        """`[w]`: the position of the token in each slot once one more is written, negative for an empty slot."""
        slots, count = torch.arange(self.max_cache_len, device=device), self.cumulative_length.to(device)
        return count - (count - slots) % self.max_cache_len

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, H, t, D]` states; returns all w slots for one token, else `[B, H, min(T, w - 1) + t, D]` each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[-2] == 1:
            self._write((self.cumulative_length % self.max_cache_len).view(1), key_states, value_states)
            self.cumulative_length.add_(1)
            self.known_length = None
            return self.keys, self.values
        return self._update_many(key_states, value_states)

    def _update_many(self, key_states, value_states):
        count, size, seen, full = key_states.shape[-2], self.max_cache_len, self.num_seen(), (key_states, value_states)
        past = min(seen, size - 1)
        if past:
            slots = torch.arange(seen - past, seen, device=self.device) % size
            held = (states.index_select(2, slots) for states in (self.keys, self.values))
            full = tuple(torch.cat(pair, dim=-2) for pair in zip(held, full, strict=True))
        kept = min(count, size)
        slots = torch.arange(seen + count - kept, seen + count, device=self.device) % size
        self._write(slots, key_states[..., count - kept :, :], value_states[..., count - kept :, :])
        self.cumulative_length.add_(count)
        self.known_length = seen + count
        return full

    def _write(self, slots, key_states, value_states):
        write_at(self.keys, slots, key_states, 2)
        write_at(self.values, slots, value_states, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of keys, position of the first), as `update` returns them; slots have no first, which counts as 0."""
        if query_length == 1:
            return self.max_cache_len, 0
        past = min(self.num_seen(), self.max_cache_len - 1)
        return past + query_length, self.num_seen() - past

    def get_seq_length(self) -> torch.Tensor | int:
        """How many tokens were seen: once there are some, a tensor on the device."""
        return StaticLayer.get_seq_length(self)

    def reset(self) -> None:
        StaticLayer.reset(self)
        self.known_length = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """In place, as the address must stay."""
        if self.is_initialized:
            rows = beam_idx.to(self.keys.device)
            for states in (self.keys, self.values):
                states.copy_(states.index_select(0, rows))


class StaticSlidingLatentLayer(StaticSlidingLayer, StaticLatentLayer):
    """The same for latent and rope key, side by side in the ring `latent_and_rope`, `[B, 1, w, c + r]`."""

    def __init__(
        self,
        max_cache_len: int,
        sliding_window: int | None = None,
        latent_dim: int | None = None,
        rope_dim: int | None = None,
        **kwargs: Any,
    ):
        self.latent_dim, self.rope_dim = latent_dim, rope_dim
        self.latent_and_rope = None
        StaticSlidingLayer.__init__(self, max_cache_len, sliding_window)

    def _write(self, slots, key_states, value_states):
        write_at(self.latent_and_rope, slots, torch.cat((key_states, value_states), dim=-1), 2)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        StaticLatentLayer.reorder_cache(self, beam_idx)
