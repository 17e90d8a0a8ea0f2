"""Static cache layers: fixed tensors written in place, so that a compiled decoding step is one graph."""

from typing import Any

import torch
from transformers.cache_utils import StaticIndexedLayer, StaticLayer


def mark_static(*tensors: torch.Tensor) -> None:
    """Tell the compiler that these tensors keep their address; it cannot be told while it traces."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)


def write_at(storage: torch.Tensor, positions: torch.Tensor, states: torch.Tensor, dim: int) -> None:
    """`storage[..., positions, ...] = states` along `dim`, in place."""
    try:
        storage.index_copy_(dim, positions, states)
    except NotImplementedError:
        # Some devices lack index_copy_.
        storage[(slice(None),) * dim + (positions,)] = states


class StaticLatentLayer(StaticLayer):
    """Latent and rope key of a fixed number N of tokens in one tensor `latent_and_rope`, `[B, 1, N, c + r]`.

    `keys` and `values` are views of it, so a compiled step holds one tensor per layer and copies nothing. With the two
    widths given, early initialisation is right whatever head shapes it assumes.
    """

    def __init__(self, max_cache_len: int, latent_dim: int | None = None, rope_dim: int | None = None, **kwargs: Any):
        self.latent_dim, self.rope_dim = latent_dim, rope_dim
        self.latent_and_rope = None
        super().__init__(max_cache_len=max_cache_len)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size, self.num_heads = key_states.shape[0], 1
        if key_states.shape[-2] or self.latent_dim is None:
            self.num_heads = key_states.shape[1]
            self.latent_dim, self.rope_dim = key_states.shape[-1], value_states.shape[-1]
        self.k_head_dim, self.v_head_dim = self.latent_dim, self.rope_dim
        shape = (self.batch_size, self.num_heads, self.max_cache_len, self.latent_dim + self.rope_dim)
        self.latent_and_rope = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.cumulative_length = self.cumulative_length.to(self.device)
        mark_static(self.latent_and_rope, self.cumulative_length)
        self.keys, self.values = self._split()
        self.is_initialized = True

    def _split(self):
        return self.latent_and_rope.split([self.latent_dim, self.rope_dim], dim=-1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, 1, t, c]` and `[B, 1, t, r]` at the next t positions; returns the views of all N."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        positions = torch.arange(count, device=self.device) + self.cumulative_length
        self.cumulative_length.add_(count)
        write_at(self.latent_and_rope, positions, torch.cat((key_states, value_states), dim=-1), 2)
        return self._split()

    def _move(self, device):
        self.latent_and_rope = self.latent_and_rope.to(device, non_blocking=True)
        self.keys, self.values = self._split()

    def offload(self) -> None:
        if self.is_initialized:
            self._move("cpu")

    def prefetch(self) -> None:
        if self.is_initialized and self.latent_and_rope.device != self.device:
            self._move(self.device)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """In place, as the address must stay."""
        if self.is_initialized:
            rows = beam_idx.to(self.latent_and_rope.device)
            self.latent_and_rope.copy_(self.latent_and_rope.index_select(0, rows))


class StaticIndexedLatentLayer(StaticIndexedLayer, StaticLatentLayer):
    """The same with the indexer's keys `[B, N, di]`."""

    def __init__(self, max_cache_len: int, latent_dim: int | None = None, rope_dim: int | None = None, **kwargs: Any):
        super().__init__(max_cache_len=max_cache_len)
        self.latent_dim, self.rope_dim = latent_dim, rope_dim
        self.indexer_position_ids = None

    def offload(self) -> None:
        super().offload()
        if self.is_indexer_initialized:
            self.indexer_keys = self.indexer_keys.to("cpu", non_blocking=True)

    def prefetch(self) -> None:
        super().prefetch()
        if self.is_indexer_initialized and self.indexer_keys.device != self.indexer_device:
            self.indexer_keys = self.indexer_keys.to(self.indexer_device, non_blocking=True)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        StaticLatentLayer.reorder_cache(self, beam_idx)
        if self.is_indexer_initialized:
            rows = beam_idx.to(self.indexer_keys.device)
            self.indexer_keys.copy_(self.indexer_keys.index_select(0, rows))
        if self.indexer_position_ids is not None:
            rows = beam_idx.to(self.indexer_position_ids.device)
            self.indexer_position_ids = self.indexer_position_ids.index_select(1, rows)
