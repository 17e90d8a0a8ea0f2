"""Cache layers of a sliding (or chunked) window: bounded memory, no copy of the window per token."""

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from .cache_growing import StoredLayer
from .cache_stores import PackedStore
from .platform_transformers import place_window


class SlidingLayer(StoredLayer, DynamicSlidingWindowLayer):
    """The last w - 1 tokens, `[B, H, min(T, w - 1), D]`, in a storage of at most 2w that is refilled when it is full.

    Keys come back in the order of their positions, which is what the masks assume: a step of t tokens returns
    min(T, w - 1) + t of them, the first of which stands at position max(T - w + 1, 0). So a token costs one row, and
    the window is copied once per w tokens. While recording the past, everything since the last `crop` is kept.
    """

    @property
    def window(self):
        """Past tokens that a query sees, w - 1: itself is the w-th."""
        return self.sliding_window - 1

    @property
    def bound(self):
        """Most tokens to hold, unless more are being recorded."""
        return 2 * self.sliding_window

    def _shown_length(self):
        return None if self.record_past else self.window

    def activate_past_recording(self):
        """From here on keep everything until `crop`, so that it can bring the window back."""
        if not self.record_past:
            self.store.trim(self.window, self.bound)
        super().activate_past_recording()

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        place_window(self)

    def update(self, key_states, value_states, *args, **kwargs):
        """Append `[B, H, t, D]` states; returns the window and them, `[B, H, min(T, w - 1) + t, D]` each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        self.cumulative_length += count
        if self.record_past:
            self.store.append(key_states, value_states, bound=self.bound)
            return self.store.tail(self.window + count)
        if self.window + count > self.bound:
            return self._pass(key_states, value_states)
        return self.store.append(key_states, value_states, keep=self.window, bound=self.bound)

    def _pass(self, key_states, value_states):
        """A step longer than the storage, hence than the window: keep its end, return the window and all of it."""
        full = self.store.as_read(key_states, value_states)
        if len(self.store):
            past = self.store.tail(self.window)
            full = tuple(torch.cat(pair, dim=-2) for pair in zip(past, full, strict=True))
        self.store.clear()
        end = key_states.shape[-2] - self.window
        self.store.append(key_states[..., end:, :], value_states[..., end:, :], bound=self.bound)
        return full

    def crop(self, tokens_to_remove):
        """Forget the last `-tokens_to_remove` tokens and what lies before the window that is left.

        Raises ValueError for a positive number; RuntimeError where the tokens that would re-enter the window are gone:
        once the window is full, that is unless `activate_past_recording` was called before they left it.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): pass minus the number of tokens to remove, so a number not above 0."
            )
        if self.cumulative_length >= self.sliding_window and not self.record_past:
            raise RuntimeError(
                f"crop({tokens_to_remove}): the window of {self.sliding_window} tokens is full and its past is not "
                "recorded. Call `activate_past_recording` before the tokens that may be removed."
            )
        left = max(self.cumulative_length + tokens_to_remove, 0)
        if max(len(self.store) + tokens_to_remove, 0) < min(left, self.window):
            raise RuntimeError(
                f"crop({tokens_to_remove}): only {len(self.store)} tokens are recorded, and {self.window} must be left."
            )
        self.store.crop(-tokens_to_remove)
        self.store.trim(self.window, self.bound)
        self.cumulative_length = left


class SlidingLatentLayer(SlidingLayer):
    """Latent attention in a window: `keys` is the latent, `values` the rotated rope key, side by side in one buffer."""

    store_class = PackedStore
    returned = 0

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        # A step that passed through has left no more than a window behind.
        self.returned = keys.shape[-2] if keys.shape[-2] <= len(self.store) else 0
        return keys, values

    @property
    def latent_and_rope(self):
        """What the last `update` returned as one tensor, `[B, 1, T, c + r]`; None where it is not one."""
        return self.store.buffer.tail(self.returned) if self.returned else None
