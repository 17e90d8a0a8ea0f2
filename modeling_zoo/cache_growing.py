"""Cache layers that remember every token, in storage that grows by doubling."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicIndexedLayer, DynamicLayer

from .cache_storage import PackedStore, PairStore, TokenBuffer


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
        self.store.map_batch(function)

    def offload(self) -> None:
        self.store.offload()

    def prefetch(self) -> None:
        if self.is_initialized:
            self.store.prefetch(self.device, self.max_tokens)

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
        self.store.crop(-tokens_to_remove)


class LatentLayer(GrowingLayer):
    """Latent attention: `keys` is the latent `[B, 1, T, c]`, `values` the rotated rope key `[B, 1, T, r]`."""

    store_class = PackedStore

    @property
    def latent_and_rope(self) -> torch.Tensor | None:
        """`[B, 1, T, c + r]`, of which `keys` and `values` are the two column blocks; None before the first token."""
        return self.store.buffer.tail()


class IndexedLayer(GrowingLayer, DynamicIndexedLayer):
    """Sparse attention: beside keys and values, the indexer's keys `[B, T, di]` (DeepSeek-V3.2, section 2.1).

    A layer that reuses the indices of an earlier one never calls `update_indexer`; its `indexer_keys` stay None.
    """

    def __init__(self, **kwargs: Any):
        self.indexer_buffer = TokenBuffer()
        super().__init__(**kwargs)
        self.indexer_position_ids = None

    @property
    def indexer_keys(self) -> torch.Tensor | None:
        return self.indexer_buffer.tail()

    @indexer_keys.setter
    def indexer_keys(self, states: torch.Tensor | None) -> None:
        if states is None:
            self.indexer_buffer.clear()
        else:
            self.indexer_buffer.adopt(states)

    def expect(self, tokens: int, share: float) -> None:
        super().expect(tokens, share)
        self.indexer_buffer.expect(tokens, share)

    def lazy_initialization_indexer(self, indexer_key_states: torch.Tensor) -> None:
        self.indexer_dtype, self.indexer_device = indexer_key_states.dtype, indexer_key_states.device
        self.is_indexer_initialized = True

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Append `[B, t, di]` indexer keys; returns the view of all of them, `[B, T, di]`."""
        if not self.is_indexer_initialized:
            self.lazy_initialization_indexer(indexer_key_states)
        return self.indexer_buffer.append(indexer_key_states)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.indexer_buffer.crop(-tokens_to_remove)
        if self.indexer_position_ids is not None:
            left = max(self.indexer_position_ids.shape[-1] + tokens_to_remove, 0)
            self.indexer_position_ids = self.indexer_position_ids[..., :left]

    def _map_batch(self, function):
        super()._map_batch(function)
        self.indexer_buffer.map_batch(function)
        if self.indexer_position_ids is not None:
            # [position_dims, B, T]: the batch is the second axis here.
            self.indexer_position_ids = function(self.indexer_position_ids.transpose(0, 1)).transpose(0, 1)

    def offload(self) -> None:
        super().offload()
        self.indexer_buffer.offload()

    def prefetch(self) -> None:
        super().prefetch()
        if self.is_indexer_initialized:
            self.indexer_buffer.prefetch(self.indexer_device)

    def reset(self) -> None:
        self.indexer_buffer.clear()
        self.indexer_position_ids, self.is_indexer_initialized = None, False
        super().reset()


class IndexedLatentLayer(IndexedLayer, LatentLayer):
    """Sparse latent attention: latent, rope key and indexer keys."""


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
