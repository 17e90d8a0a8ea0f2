"""The layer every topology starts from: a mixer and an MLP, each between norms, on one residual stream."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from configuration_zoo import ZooConfig

from .block_per_layer_input import PER_LAYER_INPUTS
from .mixer import asked_part
from .norms import make_norm
from .registry import make_mixers, make_mlp, parallel_mix

NORM_SLOTS = ("attn_norm", "attn_output_norm", "mlp_norm", "mlp_output_norm")


class ZooDecoderLayer(GradientCheckpointingLayer):
    """x + m · norm(mixer(norm(x))), then x + m · norm(mlp(norm(x))), with Identity where `norms` has no name.

    Pre-norm (Xiong et al. 2020; Llama), and what differs from it in its slots only.
    """

    norms = ("attn_norm", "mlp_norm")
    branches = ("mixer", "mlp")
    # Whether each branch ends in a norm of its own before it joins the residual stream.
    ends_in_norm = False

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__()
        for slot in NORM_SLOTS:
            norm = nn.Identity()
            if slot in self.norms:
                # These two read the residual stream.
                norm = make_norm(config, config.hidden_size, cast_input=slot in ("attn_norm", "mlp_norm"))
            setattr(self, slot, norm)
        if "mixer" in self.branches:
            mixers = make_mixers(config, layer_idx)
            self.mixer_name = next(iter(mixers))
            self.mix_in_parallel = parallel_mix(config, layer_idx)
            for name, mixer in mixers.items():
                self.add_module(name, mixer)
        if "mlp" in self.branches:
            self.mlp = make_mlp(config, layer_idx)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.residual_multiplier = config.residual_multiplier
        self.per_layer_input = asked_part(PER_LAYER_INPUTS, config)

    def scaled(self, output: torch.Tensor) -> torch.Tensor:
        """Dropout and residual multiplier on a sub-layer's output."""
        if self.training:
            output = self.dropout(output)
        return output if self.residual_multiplier == 1.0 else output * self.residual_multiplier

    def mixer(self, x: torch.Tensor, context: dict) -> torch.Tensor:
        """The output of `self_attn` or `linear_attn`, `[B, T, D]`; in a hybrid layer their sum."""
        if self.mix_in_parallel is not None:
            return self.mix_in_parallel(self.self_attn, self.linear_attn, x, **context)
        return getattr(self, self.mixer_name)(x, **context)[0]

    def mix(self, x: torch.Tensor, context: dict) -> torch.Tensor:
        """The mixer's contribution to the residual stream."""
        output = self.mixer(x, context)
        return self.scaled(self.attn_output_norm(output) if "attn_output_norm" in self.norms else output)

    def run_mlp(self, mlp: nn.Module, x: torch.Tensor, context: dict, **given: torch.Tensor) -> torch.Tensor:
        """`mlp(x)`, `[B, T, D]`, with the ids of the tokens where its router goes by them."""
        if getattr(mlp, "hashes_tokens", False):
            given["token_ids"] = context.get("token_ids")
        return mlp(x, **given)

    def feed(self, x: torch.Tensor, context: dict) -> torch.Tensor:
        """The MLP's contribution to the residual stream."""
        output = self.run_mlp(self.mlp, x, context)
        return self.scaled(self.mlp_output_norm(output) if "mlp_output_norm" in self.norms else output)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        """The residual stream `[B, T, D]` after mixer and MLP: what the topologies differ in."""
        hidden_states = hidden_states + self.mix(self.attn_norm(hidden_states), context)
        return hidden_states + self.feed(self.mlp_norm(hidden_states), context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        per_layer_input: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        **context: Any,
    ) -> torch.Tensor:
        """`[B, T, D]` → `[B, T, D]`. What the model computes once for all its layers, and learns, comes by position:
        reentrant checkpointing gives a gradient to such arguments alone."""
        for name, shared in (("position_bias", position_bias), ("start", start)):
            if shared is not None:
                context[name] = shared
        hidden_states = self.join(hidden_states, **context)
        if self.per_layer_input is None:
            return hidden_states
        return hidden_states + self.per_layer_input(hidden_states, per_layer_input)
