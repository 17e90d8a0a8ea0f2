"""The lightning indexer: small heads that choose which keys attention reads, and what layers share of its choice."""

import torch
from torch import nn
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

from .cache_growing import IndexedLatentLayer, LatentLayer
from .norms import LayerNorm
from .ops_attention_bands import mask_rows, num_visible_keys
from .ops_attention_sparse import causal_keys, index_scores, top_positions, visible_keys
from .ops_rotary import REPEAT, apply_rotary

# Cache layers without indexer keys, and the same with them.
WITH_INDEXER = {DynamicLayer: DynamicIndexedLayer, LatentLayer: IndexedLatentLayer}
# Queries per pass: what is held at once grows with the keys, not with their square.
QUERY_BLOCK = 128


class SharedIndices:
    """What the layers of one forward pass on to later ones: the positions an indexer chose, by its layer, and its loss.

    Made anew for each forward and handed to every layer, so that a layer recomputed for its gradient finds the choice
    it had, whatever came after.
    """

    def __init__(self):
        self.positions = {}
        self.losses = {}

    def of(self, layer_idx):
        """The positions `[B, T, k]` layer `layer_idx` chose, None for all; raises ValueError where it has not run."""
        if layer_idx not in self.positions:
            raise ValueError(
                f"The indexer of layer {layer_idx} has not chosen in this forward: a layer with indexer_types 'shared' "
                "runs after the 'full' one before it and is given the same shared_indices."
            )
        return self.positions[layer_idx]

    def mean_loss(self):
        """The mean over layers of what their indexers' losses are; raises ValueError where there is none."""
        if not self.losses:
            raise ValueError(
                "indexer_loss_coef is set but no layer recorded a loss: gradient checkpointing needs "
                "use_reentrant=False."
            )
        losses = list(self.losses.values())
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def spread_as(position_embeddings, interleaved, wanted):
    """cos and sin `[B, T, r]` for channels that pair up as `wanted`, from those for `interleaved` ones."""
    if position_embeddings is None or interleaved == wanted:
        return position_embeddings
    rows = [table[..., ::2] if interleaved else table.chunk(2, dim=-1)[0] for table in position_embeddings[:2]]
    return tuple(REPEAT[wanted](row) for row in rows)


def cached_keys(past_key_values, key, layer_idx):
    """Indexer keys `[B, t, d]` put behind those that layer `layer_idx` of the cache holds → all of them `[B, S, d]`.

    A plain cache made without a config has no place for them; its layer becomes one that has.
    """
    layer = past_key_values.layers[layer_idx]
    if type(layer) in WITH_INDEXER:
        indexed = WITH_INDEXER[type(layer)]()
        vars(indexed).update(vars(layer))
        past_key_values.layers[layer_idx] = indexed
    return past_key_values.update_indexer(key, layer_idx)


class LightningIndexer(nn.Module):
    """Σ_h w_h · relu(q_h · k) ranks the keys of each query; the best `index_topk` are read (DeepSeek-V3.2, §2.1).

    q from what the main queries are made of, k and w from the stream; k is normed; the first channels of q and k
    rotate with the main attention's angles, in pairs of the indexer's own layout.
    """

    def __init__(self, config):
        super().__init__()
        self.heads, self.width, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.wq_b = nn.Linear(config.q_lora_rank or config.hidden_size, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        self.k_norm = LayerNorm(self.width, config.mla_norm_eps, bias=True)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.layouts = (config.rope_interleave, config.indexer_rope_interleave)
        self.rotation = {"interleave": config.indexer_rope_interleave, "upcast": config.rope_dtype == "float32_qk"}

    def rotate(self, states, position_embeddings):
        """`[B, T, h, d]`, its first channels turned."""
        tables = spread_as(position_embeddings, *self.layouts)
        return states if tables is None else apply_rotary(states, tables, **self.rotation)

    def keys(self, hidden_states, position_embeddings):
        """`[B, T, D]` → `[B, T, d]`."""
        key = self.k_norm(self.wk(hidden_states)).unsqueeze(2)
        return self.rotate(key, position_embeddings).squeeze(2)

    def scores(self, inputs, key, block):
        """Scores `[B, t, S]` of the queries in `block`; inputs are (`[B, T, D]`, `[B, T, q]`, (cos, sin) or None)."""
        hidden_states, compressed, position_embeddings = inputs
        if position_embeddings is not None:
            position_embeddings = tuple(table[:, block] for table in position_embeddings[:2])
        query = self.wq_b(compressed[:, block]).unflatten(-1, (self.heads, self.width))
        query = self.rotate(query, position_embeddings)
        weights = self.weights_proj(hidden_states[:, block]).float() * (self.heads * self.width) ** -0.5
        return index_scores(query, key, weights)

    @torch.no_grad()
    def forward(self, inputs, attention_mask, past_key_values, layer_idx, choose=True):
        """→ positions `[B, T, k]` of the keys each query reads, some of them hidden by the mask where fewer than k are
        visible; None where there are no more than k keys or nothing is to be chosen. No mask means causal from the
        first key on."""
        hidden_states, _, position_embeddings = inputs
        key = self.keys(hidden_states, position_embeddings)
        if past_key_values is not None:
            key = cached_keys(past_key_values, key, layer_idx)
        length = hidden_states.shape[1]
        causal = attention_mask is None and length > 1
        if causal:
            key = key[:, :length]
        if key.shape[1] <= self.topk or not choose:
            return None
        chosen = []
        for start in range(0, length, QUERY_BLOCK):
            block = slice(start, min(start + QUERY_BLOCK, length))
            seen = num_visible_keys(attention_mask, block, key.shape[1], causal)
            chosen.append(self.choose(inputs, key[:, :seen], block, attention_mask, causal))
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)

    def choose(self, inputs, key, block, attention_mask, causal):
        """Positions `[B, t, k]` for the queries in `block`, as small integers."""
        batch, keys, _ = key.shape
        if keys <= self.topk:
            everything = torch.arange(self.topk, dtype=torch.int32, device=key.device)
            return everything.expand(batch, block.stop - block.start, -1)
        scores = self.scores(inputs, key, block)
        if causal:
            hidden = ~causal_keys(block.start, block.stop, keys, key.device)[:, 0]
        elif attention_mask is not None:
            hidden = ~visible_keys(mask_rows(attention_mask, block, keys, key.device)[:, 0])
        if causal or attention_mask is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return top_positions(scores, self.topk).int()
