"""Cache layers of a sliding (or chunked) window: bounded memory, no copy of the window per token."""

from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from .cache_growing import StoredLayer
from .cache_storage import PackedStore
from .platform_transformers import place_window


class SlidingLayer(StoredLayer, DynamicSlidingWindowLayer):
    """The last w - 1 tokens, `[B, H, min(T, w - 1), D]`, in a storage of at most 2w that is refilled when it is full.

    Keys come back in the order of their positions, which is what the masks assume: a step of t tokens returns
    min(T, w - 1) + t of them, the first of which stands at position max(T - w + 1, 0). So a token costs one row, and
    the window is copied once per w tokens. While recording the past, everything since the last `crop` is kept.
    """

    @property
    def past_window(self) -> int:
        """Tokens before it that a query sees, w - 1: itself is the w-th."""
        return self.sliding_window - 1

    @property
    def max_tokens(self) -> int:
        """Most tokens to hold, unless more are being recorded."""
        return 2 * self.sliding_window

    def _visible_length(self):
        return None if self.record_past else self.past_window

    def activate_past_recording(self) -> None:
        """From here on keep everything until `crop`, so that it can bring the window back."""
        if not self.record_past:
            self._trim()
        super().activate_past_recording()

    def _trim(self):
        for buffer in self.store.buffers:
            buffer.trim(self.past_window, self.max_tokens)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        place_window(self)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, H, t, D]` states; returns the window and them, `[B, H, min(T, w - 1) + t, D]` each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        self.cumulative_length += count
        if self.record_past:
            self.store.append(key_states, value_states, max_tokens=self.max_tokens)
            return self.store.tail(self.past_window + count)
        if self.past_window + count > self.max_tokens:
            return self._update_long(key_states, value_states)
        return self.store.append(key_states, value_states, keep=self.past_window, max_tokens=self.max_tokens)

    def _update_long(self, key_states, value_states):
        """A step longer than the storage, hence than the window: keep its end, return the window and all of it."""
        full = self.store.round_trip(key_states, value_states)
        if len(self.store):
            past = self.store.tail(self.past_window)
            full = tuple(torch.cat(pair, dim=-2) for pair in zip(past, full, strict=True))
        self.store.clear()
        end = key_states.shape[-2] - self.past_window
        self.store.append(key_states[..., end:, :], value_states[..., end:, :], max_tokens=self.max_tokens)
        return full

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens and what lies before the window that is left.

        Raises ValueError for a positive number; RuntimeError where the tokens that would re-enter the window are gone:
        once the window is full, that is unless `activate_past_recording` was called before they left it.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative number.")
        if self.cumulative_length >= self.sliding_window and not self.record_past:
            raise RuntimeError(
                f"crop({tokens_to_remove}): the window of {self.sliding_window} tokens is full and its past is not "
                "recorded. Call `activate_past_recording` before the tokens that may be removed."
            )
        left = max(self.cumulative_length + tokens_to_remove, 0)
        if max(len(self.store) + tokens_to_remove, 0) < min(left, self.past_window):
            raise RuntimeError(
                f"crop({tokens_to_remove}): only {len(self.store)} tokens are recorded, and {self.past_window} must be "
                "left."
            )
        for buffer in self.store.buffers:
            buffer.crop(-tokens_to_remove)
        self._trim()
        self.cumulative_length = left


class SlidingLatentLayer(SlidingLayer):
    """Latent attention in a window: `keys` is the latent, `values` the rotated rope key, side by side in one buffer."""

    store_class = PackedStore
    last_length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        # A step that passed through has left no more than a window behind.
        self.last_length = keys.shape[-2] if keys.shape[-2] <= len(self.store) else 0
        return keys, values

    @property
    def latent_and_rope(self) -> torch.Tensor | None:
        """What the last `update` returned as one tensor, `[B, 1, T, c + r]`; None where it is not one."""
        return self.store.buffer.tail(self.last_length) if self.last_length else None
