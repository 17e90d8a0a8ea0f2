"""What mixes tokens: the contract that attention, recurrences and convolutions share; and parts that fields ask for."""

from collections.abc import Callable
from typing import Any

from torch import nn

from configuration_zoo import ZooConfig


def asked_part(table: dict[str, Callable], config: ZooConfig) -> Any:
    """What a table, {field: class}, has for a field that is set, made from the config; None where none is."""
    return next((make(config) for field, make in table.items() if getattr(config, field)), None)


class TokenMixer(nn.Module):
    """What mixes tokens in a layer: attention, a recurrence or a convolution.

    Called as `mixer(hidden_states, *, position_embeddings, attention_mask, past_key_values, **kwargs)`, `[B, T, D]`,
    and gives (output `[B, T, D]`, weights or None).
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
