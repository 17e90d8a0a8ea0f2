"""Biases on the scores of attention, for the keys that the layers of a model see in one call."""

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .ops_attention_masks import ring_of
from .ops_own_part import own_part


class ScoreBiases:
    """One bias for all layers that see the same keys; made for a model whose layers have these `mask_keys`."""

    def __init__(self, config: ZooConfig, mask_keys: list[tuple[str, ...]]):
        # {mask names: a layer whose cache holds the keys they are about}.
        self.layers = {}
        for index in config.softmax_layers:
            self.layers.setdefault(mask_keys[index], config.kv_source_of(index))

    def __call__(
        self,
        position_bias: nn.Module,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        layers: nn.ModuleList,
    ) -> dict[tuple[str, ...], torch.Tensor]:
        """{mask names: bias on the scores `[B or 1, H, T or 1, K]`}, of the heads that are on this rank."""
        biases = {}
        for key, index in self.layers.items():
            queries, keys = key_positions(hidden_states, past_key_values, index)
            biases[key] = own_heads(position_bias(hidden_states, queries, keys, padding_mask), layers[index])
        return biases


def own_heads(bias: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Of a bias with heads `[.., H, .., K]`, those whose queries `layer` projects on this rank."""
    attention = getattr(layer, "self_attn", None)
    queries = getattr(attention, "q_b_proj", None) or getattr(attention, "q_proj", None)
    return bias if queries is None or bias.ndim == 2 else own_part(bias, queries, 1)


def key_positions(
    hidden_states: torch.Tensor, past_key_values: Cache | None, layer_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of the queries `[T]` and of the keys `[K]` that layer `layer_idx` will see in this call."""
    length, device = hidden_states.shape[1], hidden_states.device
    slots = torch.arange(length, device=device)
    if past_key_values is None:
        return slots, slots
    queries, ring = slots + past_key_values.get_seq_length(), ring_of(past_key_values, layer_idx)
    if length == 1 and ring is not None:
        # No query sees the empty ones of its slots.
        return queries, ring.slot_positions(device).clamp(min=0)
    kv_length, kv_offset = past_key_values.get_mask_sizes(length, layer_idx)
    return queries, torch.arange(kv_length, device=device) + kv_offset


def slots_in_order(hidden_states: torch.Tensor, past_key_values: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """The slots of the keys from the oldest to the newest `[K]`, where one token is about to be written to a ring;
    None where they stand in order."""
    ring = ring_of(past_key_values, layer_idx) if hidden_states.shape[1] == 1 else None
    return None if ring is None else ring.slot_positions(hidden_states.device).argsort()
