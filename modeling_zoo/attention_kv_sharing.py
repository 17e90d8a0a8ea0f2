"""Layers that have no keys and values and read those of an earlier layer."""

import torch

from .attention import GroupedQueryAttention
from .ops_attention_bands import mask_rows


class SharedKeyValues:
    """Keys and values `[B, K, S, d]` that layers of one forward pass on to later ones, by layer.

    Made anew for each forward: a window's cache holds fewer keys than the first queries of a prompt see, so they cannot
    be read back from there.
    """

    def __init__(self):
        self.states = {}

    def put(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.states[layer_idx] = key, value, torch.is_grad_enabled()

    def of(self, layer_idx: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What layer `layer_idx` left; raises ValueError where it has not run, or ran without the gradient that is
        wanted now."""
        if layer_idx not in self.states:
            raise ValueError(f"Layer {layer_idx} has left no keys and values: it runs before those that share them.")
        key, value, recorded = self.states[layer_idx]
        if torch.is_grad_enabled() and not recorded:
            raise ValueError(
                "num_kv_shared_layers passes keys and values from layer to layer, so gradient checkpointing needs "
                "use_reentrant=False."
            )
        return key.to(device), value.to(device)


class SharedKeyValueAttention(GroupedQueryAttention):
    """softmax(q kᵀ · scale) v with queries of its own and the keys and values, rotated, of layer `kv_source_of`.

    Nothing is cached. (Cross-layer attention, Brandon et al. 2024, arXiv 2405.12981; Gemma 3n, Gemma 4.) Raises
    ValueError where it is called without `shared_key_values`.
    """

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.source = config.kv_source_of(layer_idx)

    def build_keys(self, config, layer_idx: int) -> None:
        """It has none of its own."""

    def update_cache(self, hidden_states, position_embeddings, past_key_values, shared_key_values):
        """Nothing is cached: keys `[B, K, S, d]` and values `[B, K, S, v]` are those of layer `source`."""
        if shared_key_values is None:
            raise ValueError(f"Layer {self.layer_idx} has no keys of its own and was given no shared_key_values.")
        return shared_key_values.of(self.source, hidden_states.device)


RECORDS = ("output_hidden_states", "output_attentions", "output_router_logits")


def layer_of_last_query(config, logits_to_keep, masks, past_key_values, kwargs):
    """The first sharing layer where all queries but the last can be left out from there on, else None.

    One logit is wanted and no record of the others, and what a sharing layer computes is not cached. A mask that is not
    there says causal, which over a cache of fixed size would show keys that are not there yet.
    """
    wanted = isinstance(logits_to_keep, int) and logits_to_keep == 1
    if not (wanted and config.num_kv_shared_layers) or torch.is_grad_enabled():
        return None
    if config._attn_implementation not in ("sdpa", "eager"):
        return None
    recorded = any(kwargs.get(name, getattr(config, name, False)) for name in RECORDS)
    fixed = getattr(past_key_values, "is_compileable", False)
    if recorded or (fixed and any(mask is None for mask in masks.values())):
        return None
    return config.first_sharing_layer


def last_query(hidden_states, rows, rotations, position_ids, masks, biases):
    """Stream `[B, T, ...]`, rows per layer, rotations, positions, masks and biases of the last query alone."""
    length, device = hidden_states.shape[1], hidden_states.device
    last = slice(length - 1, length)

    def of_mask(mask):
        return mask if mask is None or getattr(mask, "ndim", 4) == 2 else mask_rows(mask, last, None, device)

    return (
        hidden_states[:, last],
        None if rows is None else rows[:, last],
        {name: tuple(table[:, last] for table in tables[:2]) for name, tables in rotations.items()},
        position_ids[:, last],
        {name: of_mask(mask) for name, mask in masks.items()},
        {name: bias[..., -1:, :] for name, bias in biases.items()},
    )
