"""Layers that have no keys and values and read those of an earlier layer.

layer 0   1   2   3   4        num_kv_shared_layers=2
      w   f   w   f   w        layer 3 reads the keys of layer 1, layer 4 those of layer 2: the last layer of the
          |   |   ^   ^        same type (w: sliding window, f: full) that has keys of its own
          +---|---+   |
              +-------+
"""

import torch
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .ops_cross_layer import SharedKeyValues


class SharedKeyValueAttention(GroupedQueryAttention):
    """softmax(q kᵀ · scale) v with queries of its own and the keys and values, rotated, of layer `kv_source_of`.

    Nothing is cached. (Cross-layer attention, Brandon et al. 2024, arXiv 2405.12981; Gemma 3n, Gemma 4.) Raises
    ValueError where it is called without `shared_key_values`.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.source = config.kv_source_of(layer_idx)

    def build_keys(self, config: ZooConfig, layer_idx: int) -> None:
        """It has none of its own."""

    def update_cache(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        past_key_values: Cache | None,
        shared_key_values: SharedKeyValues | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing is cached: keys `[B, K, S, d]` and values `[B, K, S, v]` are those of layer `source`. Raises
        ValueError without `shared_key_values`."""
        if shared_key_values is None:
            raise ValueError(
                f"Layer {self.layer_idx} has no keys of its own: pass it the shared_key_values of the earlier layers."
            )
        return shared_key_values.of(self.source, hidden_states.device)
