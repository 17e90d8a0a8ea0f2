"""Attention over blocks of keys: grouped-query attention in which an indexer chooses the blocks that a query reads.

    x → queries; keys and values → cache        as in grouped-query attention
      → indexer                                 the blocks that hold the best keys of each query, [B, h, T, n]
      → attend                                  over the keys of those blocks alone
      → o_proj

One choice per head of the indexer, which is that of a group of heads of keys: MiniMax-M3 has as many of one as of the
other.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .attention_sparse_indexer import SharedIndices, chosen_for
from .norms import make_norm
from .ops_attention_bands import AttentionMask
from .ops_attention_blocks import ChosenBlocks, block_attention, select_blocks
from .ops_rotary import apply_rotary


class BlockIndexer(nn.Module):
    """max_{j in block} q_h · k_j ranks the blocks of keys of each query, head by head; the best `index_topk /
    block_size` are read, the last `local_blocks` up to the query's own among them (MiniMax-M3, MiniMax 2026).

    q `[B, T, h, d]` and one k `[B, T, d]` for all heads, both from the layer's input, normed and rotated as those of
    attention. Keys are cached beside those of attention.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.heads, self.width, self.size = config.index_n_heads, config.index_head_dim, config.indexer["block_size"]
        self.count, self.local = config.index_topk // self.size, config.indexer["local_blocks"]
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        self.q_norm, self.k_norm = make_norm(config, self.width), make_norm(config, self.width)
        self.warmup = config.indexer["warmup"]
        self.rotation = {"interleave": config.rope_interleave, "upcast": config.precision["rope"] == "float32_qk"}

    @torch.no_grad()
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        attention_mask: AttentionMask,
        past_key_values: Cache | None,
        layer_idx: int,
    ) -> ChosenBlocks | None:
        """The blocks each query reads; None, for all of them, where there are no more and while `indexer.warmup` keeps
        attention dense."""
        key = self.project(self.k_proj, self.k_norm, hidden_states, position_embeddings).squeeze(2)
        if past_key_values is not None:
            key = past_key_values.update_indexer(key, layer_idx)
        if self.warmup:
            return None
        sizes, queries = (self.size, self.count, self.local), hidden_states.shape[1]
        scores = partial(self.scores, hidden_states, position_embeddings)
        return select_blocks(scores, key, *sizes, queries, attention_mask)

    def project(
        self,
        linear: nn.Linear,
        norm: nn.Module,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
    ) -> torch.Tensor:
        """Queries or keys, `[B, T, D]` → `[B, T, h, d]`."""
        states = norm(linear(hidden_states).unflatten(-1, (-1, self.width)))
        return states if position_embeddings is None else apply_rotary(states, position_embeddings, **self.rotation)

    def scores(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        key: torch.Tensor,
        block: slice,
    ) -> torch.Tensor:
        """q_h · k in float32, `[B, h, t, S]`, of the tokens `[B, T, D]` in `block` and keys `[B, S, d]`."""
        tables = position_embeddings and tuple(table[:, block] for table in position_embeddings[:2])
        query = self.project(self.q_proj, self.q_norm, hidden_states[:, block], tables).transpose(1, 2)
        return torch.matmul(query.float(), key.float().transpose(1, 2).unsqueeze(1))


class BlockIndexedAttention(GroupedQueryAttention):
    """Grouped-query attention over the blocks of keys its indexer ranks highest (MiniMax-M3, MiniMax 2026).

    With no more keys than `index_topk` it is grouped-query attention. A layer without an indexer reads what the last
    layer with one chose.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.indexer_layer = config.indexer_of(layer_idx)
        self.indexer = BlockIndexer(config) if self.indexer_layer == layer_idx else None
        self.block_size = config.per_layer_config[self.indexer_layer].indexer["block_size"]

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
        query, gate = self.queries(hidden_states, position_embeddings, position_ids)
        key, value = self.update_cache(hidden_states, position_embeddings, past_key_values, None)
        choose = None
        if self.indexer is not None:
            call = (hidden_states, position_embeddings, attention_mask, past_key_values, self.layer_idx)
            choose = partial(self.indexer, *call)
        chosen = chosen_for(self, choose, shared_indices)
        call, kwargs["position_ids"] = (query, key, value, attention_mask), position_ids
        if chosen is None:
            attn_output, weights = self.attend(*call, **kwargs)
        else:
            attn_output, weights = block_attention(self, *call, chosen, self.block_size, **kwargs)
        return self.output(attn_output, hidden_states, gate), weights
