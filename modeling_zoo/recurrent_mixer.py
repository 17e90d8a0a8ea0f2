"""What every recurrent mixer shares: rows without padding, its view of the cache, initial decays."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .cache_recurrent_view import RecurrentCacheView
from .mixer import TokenMixer
from .ops_own_part import own_part
from .ops_packing import PackedSequences
from .recurrent_rows import PaddedRows, TokenRows, unpad


class RecurrentMixer(TokenMixer):
    """x `[B, T, D]` -> unpad -> `mix` -> pad -> `[B, T, D]`.

    A subclass computes `mix(hidden_states, cache, rows)` in the layout `rows`: where it holds no token the state has to
    stay as it is, and where `rows.packed` has a start the state before is forgotten. Exact for any padding, packed
    sequences, and any split of a sequence into forwards over a cache. `attention_mask` is what `create_recurrent_mask`
    makes.

    `settings` are the `linear_*` and `time_step_*` fields of this layer without `linear_` in front; which of them a
    mechanism reads is the table LINEAR_MECHANISMS of the config.
    """

    # Whether `recurrence` takes a DeferredState for a single token.
    can_defer = False

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.settings = config.linear_settings(layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | PaddedRows | PackedSequences | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        cache = RecurrentCacheView(past_key_values, self.layer_idx)
        hidden_states, rows = unpad(hidden_states, attention_mask, cache, position_ids)
        return rows.pad(self.mix(hidden_states, cache, rows)), None

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        raise NotImplementedError


def make_projection(inputs: int, outputs: int, rank: int | None = None, bias: bool = False) -> nn.Module:
    """A linear map, through `rank` channels where that is set."""
    if rank is None:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


def own_output(projected: torch.Tensor, projection: nn.Module, source: nn.Module) -> torch.Tensor:
    """Of what `make_projection` has made, `[B, T, outputs]`, the part that goes with the rows of `source` on this rank:
    a plain map is split like that one and has given it, one through a `rank` is whole."""
    return own_part(projected, source, -1) if isinstance(projection, nn.Sequential) else projected


@torch.no_grad()
def initialize_rates(rates: torch.Tensor, largest: float = 16.0) -> None:
    """A_log: rates spread evenly between 1 and `largest`."""
    init.uniform_(rates, 1.0, largest)
    init.copy_(rates, rates.log())


@torch.no_grad()
def initialize_time_steps(bias: torch.Tensor, settings: SimpleNamespace) -> None:
    """dt_bias: softplus of it is spread between time_step_min and time_step_max on a logarithmic scale."""
    low, high = math.log(settings.time_step_min), math.log(settings.time_step_max)
    init.uniform_(bias, low, high)
    steps = bias.exp().clamp(min=settings.time_step_floor)
    # The inverse of softplus.
    init.copy_(bias, steps + torch.log(-torch.expm1(-steps)))
