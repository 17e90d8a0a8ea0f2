"""What every recurrent mixer shares: rows without padding before it, a place in the cache, initial decays."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .mixer import TokenMixer
from .recurrent_memory import Memory
from .recurrent_rows import arrange


class RecurrentMixer(TokenMixer):
    """x `[B, L, D]` -> rows of tokens -> `mix` -> `[B, L, D]`.

    A subclass computes `mix(hidden_states [B, T, D], memory, rows)`; what it must do at places of a row without a token
    is only to leave its state alone there, and to forget it where `rows.packed` has a start. Exact for any padding,
    packed sequences, and any split of a sequence into forwards over a cache. `attention_mask` is what
    `create_recurrent_mask` makes.
    """

    # Whether `recurrence` takes a DelayedState for a single token.
    delays_writes = False

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.settings = config.linear_settings(layer_idx)

    def forward(self, hidden_states, *, attention_mask=None, past_key_values=None, position_ids=None, **kwargs):
        memory = Memory(past_key_values, self.layer_idx)
        rows = arrange(hidden_states, attention_mask, memory).with_positions(position_ids)
        output = self.mix(rows.pack(hidden_states), memory, rows)
        return rows.unpack(output), None

    def mix(self, hidden_states, memory, rows):
        raise NotImplementedError

    def recur(self, memory, rows, recurrence, *inputs):
        """`recurrence(*inputs, state, packed)` -> (output, state) from the state in the cache on; stores the new one.

        The inputs are `[B, T, ...]`, or None but for the first; a rollback redoes the first tokens of them. States keep
        their own dtype under autocast, which would round them for every product.
        """
        device = inputs[0].device.type
        delayed = memory.delayed_state() if self.delays_writes and inputs[0].shape[1] == 1 else None
        with maybe_autocast(device_type=device, enabled=False):
            output, state = recurrence(*inputs, memory.state() if delayed is None else delayed, rows.packed)
        if delayed is not None:
            return output

        def replay(before, tokens):
            # A recurrence may write into the state it is given.
            before = None if before is None else before.clone()
            with maybe_autocast(device_type=device, enabled=False):
                return recurrence(*[None if x is None else x[:, :tokens] for x in inputs], before, None)[1]

        memory.store_state(state, replay, output.shape[1])
        return output


def make_projection(inputs, outputs, rank=None, bias=False):
    """A linear map, through `rank` channels where that is set."""
    if rank is None:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


@torch.no_grad()
def initialize_rates(rates, largest=16.0):
    """A_log: rates spread evenly between 1 and `largest`."""
    init.uniform_(rates, 1.0, largest)
    init.copy_(rates, rates.log())


@torch.no_grad()
def initialize_time_steps(bias, settings):
    """dt_bias: softplus of it is spread between time_step_min and time_step_max on a logarithmic scale."""
    low, high = math.log(settings.time_step_min), math.log(settings.time_step_max)
    init.uniform_(bias, low, high)
    steps = bias.exp().clamp(min=settings.time_step_floor)
    # The inverse of softplus.
    init.copy_(bias, steps + torch.log(-torch.expm1(-steps)))
