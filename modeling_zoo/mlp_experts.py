"""Routed experts: one 3-D parameter per projection, run by the implementation that transformers' interface selects.

Canonical layout, [out, in] with the gate's rows before the up projection's:

    gate_up_proj [E, 2I, D]   gate_up_proj_bias [E, 2I]   down_proj [E, D, I]   down_proj_bias [E, D]
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations.moe import use_experts_implementation

from configuration_zoo import ZooConfig

from .mlp_dense import ScaledSiLU, SoftcappedSiLU, gate_and_clamp, make_activation
from .ops_experts import EXPERTS_FORMS
from .ops_linear import linear


def make_expert_activation(config: ZooConfig) -> nn.Module:
    """The activation of routed and shared experts: a dense layer's, a SiLU with `swiglu_config.alpha` inside it, or one
    with a bound, `swiglu_config.gate_softcap`."""
    if config.swiglu_config["gate_softcap"] is not None:
        return SoftcappedSiLU(config.swiglu_config["gate_softcap"])
    alpha = config.swiglu_config["alpha"]
    return make_activation(config) if alpha is None else ScaledSiLU(alpha)


class Experts(nn.Module):
    """y = Σ_k weight_k · expert_k(x): x `[N, D]`, expert ids and weights `[N, k]` → `[N, D]`.

    The id `num_experts` stands for no expert: expert parallelism marks the slots of other ranks so. A subclass names
    its `input_projection`, registers it and says what `activate` computes between the two projections.
    """

    input_projection: str
    has_matrices = True

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.moe_latent_size or config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.act_fn = make_expert_activation(config)

    def make_projections(self, width: int, bias: bool) -> None:
        """Registers the input projection [E, width, D] and down_proj [E, D, I], each with a `_bias` if asked."""
        shapes = {
            self.input_projection: (width, self.hidden_dim),
            "down_proj": (self.hidden_dim, self.intermediate_dim),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, *shape)))
            if bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(self.num_experts, shape[0])))

    def initialize(self, std: float) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The loop over experts: each is given the tokens that chose it."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue
            token, slot = torch.where(top_k_index == expert)
            result = self.run_expert(hidden_states[token], expert) * top_k_weights[token, slot, None]
            output.index_add_(0, token, result.to(output.dtype))
        return output

    def run_expert(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """One expert: down(activate(W x)), `[n, D]` → `[n, D]`."""
        return self.project(self.activate(self.project(x, self.input_projection, expert)), "down_proj", expert)

    def project(self, x: torch.Tensor, projection: str, expert: int) -> torch.Tensor:
        """One projection of one expert, `[n, in]` → `[n, out]`."""
        bias = getattr(self, f"{projection}_bias", None)
        return linear(x, getattr(self, projection)[expert], None if bias is None else bias[expert])


class GatedProjection(Experts):
    """down(act(gate x) · up x) (Shazeer 2020)."""

    input_projection, has_projection_bias = "gate_up_proj", False

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        self.limit, self.offset = config.swiglu_limit, config.swiglu_config["up_offset"]
        self.clamp_behind = config.swiglu_config["clamp_behind_activation"]
        self.up_cap = config.swiglu_config["up_softcap"]
        self.make_projections(2 * self.intermediate_dim, self.has_projection_bias)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`[n, 2I]` → `[n, I]`, under the name that the interface looks for."""
        gate, up = gate_up.chunk(2, dim=-1)
        return gate_and_clamp(self.act_fn, gate, up, self.limit, self.offset, self.clamp_behind, self.up_cap)

    def activate(self, states: torch.Tensor) -> torch.Tensor:
        return self._apply_gate(states)


class PlainProjection(Experts):
    """down(act(up x))."""

    input_projection, has_projection_bias = "up_proj", False

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        self.make_projections(self.intermediate_dim, self.has_projection_bias)

    def activate(self, states: torch.Tensor) -> torch.Tensor:
        return self.act_fn(states)


# What the interface needs to know about an experts class is fixed where it is decorated.
@use_experts_implementation(experts_interface=EXPERTS_FORMS)
class GatedExperts(GatedProjection):
    """Gated experts without biases (Mixtral, DeepSeek-V3, Qwen3)."""


@use_experts_implementation(experts_interface=EXPERTS_FORMS, has_bias=True)
class GatedBiasExperts(GatedProjection):
    """Gated experts with biases (gpt-oss)."""

    has_projection_bias = True


@use_experts_implementation(experts_interface=EXPERTS_FORMS, has_gate=False)
class PlainExperts(PlainProjection):
    """Experts without a gate (Nemotron 3)."""


@use_experts_implementation(experts_interface=EXPERTS_FORMS, has_gate=False, has_bias=True)
class PlainBiasExperts(PlainProjection):
    """Experts without a gate, with biases (Switch Transformer)."""

    has_projection_bias = True


# By (gated_mlp, expert_bias).
EXPERTS = {
    (True, False): GatedExperts,
    (True, True): GatedBiasExperts,
    (False, False): PlainExperts,
    (False, True): PlainBiasExperts,
}
