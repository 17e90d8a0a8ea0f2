"""DeepSeek sparse attention: latent attention in which an indexer chooses the keys that a query reads.

    x → project → cache                 as in latent attention
      → indexer                         positions of the k keys that each query scores highest, [B, T, k]
      → attend                          over those keys alone
      → o_proj

Scores are cheap, a few narrow heads and no softmax; what costs much, attention, then reads k keys per query instead of
all before it. The scores are in `attention_sparse_indexer.py`.
"""

from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention_latent import LatentAttention
from .attention_sparse_indexer import IndexerInputs, LightningIndexer, SharedIndices, chosen_for
from .ops_attention_bands import AttentionMask
from .ops_attention_latent import latent_attention
from .ops_attention_sparse import sparse_attention
from .train_indexer import record_indexer_loss


class IndexedAttention(LatentAttention):
    """Latent attention over the `index_topk` keys its indexer ranks highest (DeepSeek-V3.2, arXiv 2512.02556, §2.1).

    With no more keys than that it is latent attention. A layer without an indexer reads what the last layer with one
    chose (GLM-5, arXiv 2603.12201).
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.indexer_layer = config.indexer_of(layer_idx)
        self.indexer = LightningIndexer(config) if self.indexer_layer == layer_idx else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        shared_indices: SharedIndices | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, gate, latent, rope_key, source = self.project(hidden_states, position_embeddings, position_ids)
        latent, rope_key = self.update_cache(latent, rope_key, past_key_values)
        inputs = IndexerInputs(hidden_states, source, position_embeddings)
        positions = self.select(inputs, attention_mask, past_key_values, shared_indices)
        record_indexer_loss(self, query, latent, rope_key, attention_mask, inputs, positions, shared_indices)
        call, kwargs["position_ids"] = (self, query, latent, rope_key, attention_mask, past_key_values), position_ids
        if positions is None:
            attn_output, weights = latent_attention(*call, **kwargs)
        else:
            attn_output, weights = sparse_attention(*call, positions, **kwargs)
        return self.output(attn_output, hidden_states, gate), weights

    def select(
        self,
        inputs: IndexerInputs,
        attention_mask: AttentionMask,
        past_key_values: Cache | None,
        shared_indices: SharedIndices | None,
    ) -> torch.Tensor | None:
        """Positions `[B, T, k]` for each query, None for all; raises ValueError for a shared layer on its own."""
        choose = None
        if self.indexer is not None:
            choose = partial(self.indexer, inputs, attention_mask, past_key_values, self.layer_idx)
        positions = chosen_for(self, choose, shared_indices)
        return positions if positions is None else positions.to(inputs.hidden_states.device)
