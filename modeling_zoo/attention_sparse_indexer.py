"""The lightning indexer: small heads that choose which keys attention reads, and what layers share of its choice."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .norms import LayerNorm
from .ops_attention_bands import AttentionMask
from .ops_attention_indexer import index_scores, select_keys
from .ops_rotary import REPEAT, apply_rotary


class IndexerInputs(NamedTuple):
    """What an indexer reads: the layer's input `[B, T, D]`, what the main queries are projected from `[B, T, q]`, and
    the main attention's (cos, sin) or None."""

    hidden_states: torch.Tensor
    query_source: torch.Tensor
    position_embeddings: tuple[torch.Tensor, ...] | None


class LightningIndexer(nn.Module):
    """Σ_h w_h · relu(q_h · k) ranks the keys of each query; the best `index_topk` are read (DeepSeek-V3.2, §2.1).

    q from what the main queries are projected from, `[B, T, h, d]`; k `[B, T, d]`, normed, and w `[B, T, h]` from the
    layer's input. The first channels of q and k rotate by the main attention's angles, in pairs of a layout of their
    own. Keys are cached beside those of attention.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.config = config
        self.heads, self.width, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.wq_b = nn.Linear(config.q_lora_rank or config.hidden_size, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        eps = config.indexer["norm_eps"] or config.mla_config["norm_eps"]
        self.k_norm = LayerNorm(self.width, eps, bias=True)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.interleave = config.indexer["rope_interleave"]
        self.rotation = {"interleave": self.interleave, "upcast": config.precision["rope"] == "float32_qk"}

    @torch.no_grad()
    def forward(
        self, inputs: IndexerInputs, attention_mask: AttentionMask, past_key_values: Cache | None, layer_idx: int
    ) -> torch.Tensor | None:
        """Positions `[B, T, k]` of the keys each query reads; None, for all of them, where there are no more than k and
        while `indexer.warmup` trains the indexer beside dense attention."""
        key = self.keys(inputs)
        if past_key_values is not None:
            key = past_key_values.update_indexer(key, layer_idx)
        if self.config.indexer["warmup"]:
            return None
        return select_keys(partial(self.scores, inputs), key, self.topk, inputs.hidden_states.shape[1], attention_mask)

    def keys(self, inputs: IndexerInputs) -> torch.Tensor:
        """k of these tokens, `[B, T, d]`."""
        key = self.k_norm(self.wk(inputs.hidden_states)).unsqueeze(2)
        return self.rotate(key, inputs.position_embeddings).squeeze(2)

    def scores(self, inputs: IndexerInputs, key: torch.Tensor, block: slice) -> torch.Tensor:
        """Scores `[B, t, S]` of keys `[B, S, d]` for the queries in `block`."""
        position_embeddings = inputs.position_embeddings
        if position_embeddings is not None:
            position_embeddings = tuple(table[:, block] for table in position_embeddings[:2])
        query = self.wq_b(inputs.query_source[:, block]).unflatten(-1, (self.heads, self.width))
        query = self.rotate(query, position_embeddings)
        weights = self.weights_proj(inputs.hidden_states[:, block]).float() * (self.heads * self.width) ** -0.5
        return index_scores(query, key, weights)

    def rotate(self, states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None) -> torch.Tensor:
        """`[B, T, h, d]`, its first channels rotated."""
        if position_embeddings is None:
            return states
        if self.config.rope_interleave != self.interleave:
            position_embeddings = change_layout(position_embeddings, self.config.rope_interleave)
        return apply_rotary(states, position_embeddings, **self.rotation)


def change_layout(
    position_embeddings: tuple[torch.Tensor, ...], interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[B, T, r]` for channels in the other layout of their pairs, from those for `interleaved` ones."""
    rows = [table[..., ::2] if interleaved else table.chunk(2, dim=-1)[0] for table in position_embeddings[:2]]
    return tuple(REPEAT[not interleaved](row) for row in rows)


def chosen_for(mixer: nn.Module, choose: Callable | None, shared_indices: "SharedIndices | None") -> Any:
    """What the layer's own indexer chooses, by `choose()`, put down for later layers; without one, None, what the
    layer with it chose. Raises ValueError for a shared layer on its own."""
    if choose is not None:
        chosen = choose()
        if shared_indices is not None:
            shared_indices.positions[mixer.layer_idx] = chosen
        return chosen
    if shared_indices is None:
        raise ValueError(f"Layer {mixer.layer_idx} has no indexer: pass it the shared_indices of the earlier layers.")
    return shared_indices.positions_of(mixer.indexer_layer)


class SharedIndices:
    """What the layers of one forward pass on to later ones: the positions an indexer chose, by its layer, and its loss.

    Made for each forward and handed to every layer, so that a layer recomputed for its gradient finds the choice
    it had, whatever came after.
    """

    def __init__(self):
        self.positions = {}
        self.losses = {}

    def positions_of(self, layer_idx: int) -> torch.Tensor | None:
        """The positions `[B, T, k]` layer `layer_idx` chose, None for all; raises ValueError where it has not run."""
        if layer_idx not in self.positions:
            raise ValueError(
                f"The indexer of layer {layer_idx} has not chosen in this forward: a layer with indexer_types 'shared' "
                "runs after the 'full' one before it and is given the same shared_indices."
            )
        return self.positions[layer_idx]

    def mean_loss(self) -> torch.Tensor:
        """The mean over layers of what their indexers' losses are; raises ValueError where there is none."""
        if not self.losses:
            raise ValueError(
                "indexer_loss_coef is set but no layer recorded a loss: gradient checkpointing needs "
                "use_reentrant=False."
            )
        losses = list(self.losses.values())
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()
