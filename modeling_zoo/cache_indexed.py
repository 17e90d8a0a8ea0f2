"""Cache layers of sparse attention: beside what attention reads, the keys by which an indexer chooses."""

from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicIndexedLayer, StaticIndexedLayer

from .cache_growing import GrowingLayer, LatentLayer
from .cache_storage import TokenBuffer


def register_indexed_attention() -> None:
    """Tells a transformers before 5.19, which has another layer type for them, that these layers are indexed
    attention's."""
    for table, layer in (("DYNAMIC", DynamicIndexedLayer), ("STATIC", StaticIndexedLayer)):
        getattr(cache_utils, f"{table}_LAYER_TYPE_MAPPING", {}).setdefault("indexed_attention", layer)


register_indexed_attention()


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
