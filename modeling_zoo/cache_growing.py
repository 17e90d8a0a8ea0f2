"""Cache layers that remember every token, in storage that grows by doubling."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .cache_storage import PackedStore, PairStore


class StoredLayer:
    """What a dynamic attention layer does to its store, whatever the layout; mixed in before transformers' class.

    `keys` and `values` are views of the store, `[B, H, T, D]`. A view stays valid until its tokens are cropped and
    overwritten; copy it to keep it longer.
    """

    store_class = PairStore
    max_tokens = None

    def __init__(self, *args: Any, **kwargs: Any):
        self.store = self.store_class()
        super().__init__(*args, **kwargs)

    @property
    def keys(self) -> torch.Tensor | None:
        return self._visible(0)

    @keys.setter
    def keys(self, states: torch.Tensor | None) -> None:
        self._assign(states, None)

    @property
    def values(self) -> torch.Tensor | None:
        return self._visible(1)

    @values.setter
    def values(self, states: torch.Tensor | None) -> None:
        self._assign(None, states)

    def _visible(self, index):
        states = self.store.tail(self._visible_length())[index]
        if states is None and self.is_initialized:
            return torch.tensor([], dtype=self.dtype, device=self.device)
        return states

    def _visible_length(self):
        return None

    def _assign(self, keys, values):
        if keys is None and values is None:
            self.store.clear()
        else:
            self.store.assign(keys, values)

    def expect(self, tokens: int, share: float) -> None:
        """Room for so many `tokens` in all, where it is no more than this `share` of a device's free memory."""
        for buffer in self.store.buffers:
            buffer.expect(tokens, share / len(self.store.buffers))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._map_batch(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_batch(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_batch(lambda states: states[indices])

    def _map_batch(self, function):
        for buffer in self.store.buffers:
            buffer.map_batch(function)

    def offload(self) -> None:
        for buffer in self.store.buffers:
            buffer.offload()

    def prefetch(self) -> None:
        for buffer in self.store.buffers if self.is_initialized else ():
            buffer.prefetch(self.device, self.max_tokens)

    def reset(self) -> None:
        self.store.clear()
        self.is_initialized = False
        super().reset()


class GrowingLayer(StoredLayer, DynamicLayer):
    """Full attention: keys and values `[B, H, T, D]`, one row written per new token."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, H, t, D]` states; returns views of all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.store.append(key_states, value_states)

    def get_seq_length(self) -> int:
        return len(self.store)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens; raises ValueError for a positive number."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative number.")
        for buffer in self.store.buffers:
            buffer.crop(-tokens_to_remove)


class LatentLayer(GrowingLayer):
    """Latent attention: `keys` is the latent `[B, 1, T, c]`, `values` the rotated rope key `[B, 1, T, r]`."""

    store_class = PackedStore

    @property
    def latent_and_rope(self) -> torch.Tensor | None:
        """`[B, 1, T, c + r]`, of which `keys` and `values` are the two column blocks; None before the first token."""
        return self.store.buffer.tail()


def refuse_keys_per_head(cache: Cache | None, layer_idx: int) -> None:
    """Raises ValueError where layer `layer_idx` of a latent model's cache was filled with keys and values per head."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[layer_idx], "keys", None) if layer_idx < len(layers) else None
    if isinstance(keys, torch.Tensor) and keys.dim() == 4 and keys.shape[1] != 1:
        raise ValueError(
            f"Layer {layer_idx} of the cache holds keys of {keys.shape[1]} heads, but latent attention caches one "
            "latent for all of them. Prefix tuning, which writes keys and values per head, cannot be used with "
            "attention_type='latent': use prompt tuning or LoRA."
        )
