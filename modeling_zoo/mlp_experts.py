"""Routed experts: one 3-D parameter per projection, run by the implementation that transformers' interface selects.

Canonical layout, [out, in] with the gate's rows before the up projection's:

    gate_up_proj [E, 2I, D]   gate_up_proj_bias [E, 2I]   down_proj [E, D, I]   down_proj_bias [E, D]
"""

import math
from functools import wraps

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

from .mlp_dense import make_activation
from .ops_dispatch import HALF_DTYPES, has_values, is_eager_cpu_inference, use_fp32_gemm
from .ops_linear import MIN_PRODUCTS, linear

# Rows per expert from which lifting its matrices to float32 pays, and that share a lifted matrix.
LEAST_SHARING, MOST_SHARING = 64, 512
# What a product in groups takes: rows that are multiples of so many bytes, numbers no wider than so many.
GROUPED_BYTES, GROUPED_WIDTH = 16, 4


class ScaledSiLU(nn.Module):
    """x · sigmoid(alpha x) (Ramachandran et al. 2017; gpt-oss)."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        return x * torch.sigmoid(self.alpha * x)


def make_expert_activation(config):
    """The activation of routed and shared experts: a dense layer's, or a SiLU with `swiglu_alpha` inside it."""
    return make_activation(config) if config.swiglu_alpha is None else ScaledSiLU(config.swiglu_alpha)


def gate_and_clamp(act_fn, gate, up, limit, offset):
    """act(min(gate, limit)) · (clamp(up, ±limit) + offset), `[..., I]` each (gpt-oss, DeepSeek-V4)."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    if offset is not None:
        up = up + offset
    return act_fn(gate) * up


class Experts(nn.Module):
    """y = Σ_slots weight · expert(x), x `[N, D]`, expert ids and weights `[N, k]` → `[N, D]`.

    An id of `num_experts` is nobody's: expert parallelism marks other ranks' slots so. A subclass names its `first`
    projection, into the experts, which is all the implementations distinguish, and what comes between the two.
    """

    first = None

    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.moe_latent_size or config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.row_unit = math.gcd(self.hidden_dim, self.intermediate_dim)

    def make_projections(self, name, width, bias):
        """Registers `name` [E, width, D] and down_proj [E, D, I], each with a `_bias` if asked."""
        shapes = {name: (width, self.hidden_dim), "down_proj": (self.hidden_dim, self.intermediate_dim)}
        for projection, shape in shapes.items():
            self.register_parameter(projection, nn.Parameter(torch.empty(self.num_experts, *shape)))
            if bias:
                self.register_parameter(f"{projection}_bias", nn.Parameter(torch.empty(self.num_experts, shape[0])))

    def initialize(self, std):
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)

    def linear(self, x, projection, expert):
        bias = getattr(self, f"{projection}_bias", None)
        return linear(x, getattr(self, projection)[expert], None if bias is None else bias[expert])

    def expand(self, x, expert):
        """`[n, D]` → what one expert holds between its projections, `[n, I]`."""
        return self.inner(self.linear(x, self.first, expert))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue
            token, slot = torch.where(top_k_index == expert)
            result = self.linear(self.expand(hidden_states[token], expert), "down_proj", expert)
            result = result * top_k_weights[token, slot, None]
            output.index_add_(0, token, result.to(output.dtype))
        return output

    def is_grouped(self):
        """Whether the interface multiplies in groups."""
        return self.config._experts_implementation == "grouped_mm"

    def fits_groups(self, hidden_states):
        """Whether products in groups take rows of these widths in this dtype; without data they take one dtype."""
        if hidden_states.element_size() > GROUPED_WIDTH or hidden_states.is_meta:
            return False
        # Wide enough in whatever they take; looking at the matrices may mean computing them.
        least = HALF_DTYPES[0].itemsize * self.row_unit
        return least % GROUPED_BYTES == 0 or self.row_unit * self.down_proj.element_size() % GROUPED_BYTES == 0

    def is_alone(self, hidden_states):
        """Whether the few experts of one token are faster one by one: a CPU's groups are a product for every expert
        there is. What they are is known at once there."""
        # Asked first: a comparison of sizes would bind a traced graph to them.
        if not is_eager_cpu_inference(hidden_states) or torch.is_autocast_enabled("cpu"):
            return False
        plain = all(type(getattr(self, name)) is nn.Parameter for name in (self.first, "down_proj"))
        return len(hidden_states) == 1 and plain and self.is_grouped()

    def one_by_one(self, hidden_states, top_k_index, top_k_weights):
        """The same as in groups, to the last bit, from the experts of one token alone, but those of other ranks."""
        chosen, weights = top_k_index[0].tolist(), top_k_weights[0]
        here = [slot for slot, expert in enumerate(chosen) if expert < self.num_experts]
        if len(here) < len(chosen):
            chosen, weights = [chosen[slot] for slot in here], weights[here]
        if not chosen:
            return torch.zeros_like(hidden_states)
        states = self.inner(self.each(hidden_states.expand(len(chosen), -1), self.first, chosen))
        states = self.each(states, "down_proj", chosen) * weights[:, None]
        return states.unsqueeze(0).sum(dim=1).to(hidden_states.dtype)

    def each(self, states, projection, chosen):
        """Row i of `states` `[k, D]` through expert `chosen[i]`, `[k, I]`."""
        weight, bias = getattr(self, projection), getattr(self, f"{projection}_bias", None)
        rows = zip(states.split(1), chosen, strict=True)
        output = torch.cat([F.linear(row, weight[expert]) for row, expert in rows])
        return output if bias is None else output + bias[chosen]

    def lifts(self, hidden_states, top_k_index):
        """Whether all experts in turn, their matrices in float32, are faster than products in groups."""
        # Asked first: a comparison of sizes would bind a traced graph to them.
        if not use_fp32_gemm(hidden_states):
            return False
        many = top_k_index.numel() >= LEAST_SHARING * self.num_experts
        large = LEAST_SHARING * self.down_proj[0].numel() >= MIN_PRODUCTS
        return many and large and self.is_grouped()

    def in_turn(self, hidden_states, top_k_index, top_k_weights):
        """The same as in groups: rounded after each product, summed up in float32; some tokens at a time."""
        output, slots = torch.empty_like(hidden_states), top_k_index.shape[1]
        step = -(-MOST_SHARING * self.num_experts // slots)
        for start in range(0, len(hidden_states), step):
            tokens, weights = hidden_states[start : start + step], top_k_weights[start : start + step].flatten()
            experts, order = top_k_index[start : start + step].flatten().sort()
            total = torch.zeros(tokens.shape, dtype=torch.float32)
            counts = torch.bincount(experts, minlength=self.num_experts).tolist()
            for expert, rows in enumerate(order.split(counts)):
                if len(rows) and expert < self.num_experts:
                    here = rows // slots
                    result = self.linear(self.expand(tokens[here], expert), "down_proj", expert)
                    total.index_add_(0, here, (result * weights[rows, None]).to(output.dtype).float())
            output[start : start + step] = total
        return output


class GatedProjection(Experts):
    """down(act(gate x) · up x) (Shazeer 2020)."""

    first, has_projection_bias = "gate_up_proj", False

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        self.make_projections(self.first, 2 * self.intermediate_dim, self.has_projection_bias)
        self.act_fn = make_expert_activation(config)
        self.limit, self.offset = config.swiglu_limit, config.swiglu_up_offset

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return gate_and_clamp(self.act_fn, gate, up, self.limit, self.offset)

    def inner(self, states):
        return self._apply_gate(states)


class PlainProjection(Experts):
    """down(act(up x))."""

    first, has_projection_bias = "up_proj", False

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        self.make_projections(self.first, self.intermediate_dim, self.has_projection_bias)
        self.act_fn = make_expert_activation(config)

    def inner(self, states):
        return self.act_fn(states)


def picks_faster(experts_class):
    """Decorates a class that transformers' interface serves: where it says to multiply in groups, a CPU may be faster
    one expert by one, or in float32; and where groups cannot be, it is expert after expert, or in a graph or without
    data, which has no numbers to choose by, a product for each slot."""
    dispatched = experts_class.forward

    @wraps(dispatched)
    def forward(self, hidden_states, top_k_index, top_k_weights):
        if self.is_alone(hidden_states):
            return self.one_by_one(hidden_states, top_k_index, top_k_weights)
        if self.config._experts_implementation == "grouped_mm" and not self.fits_groups(hidden_states):
            chosen = Experts.forward if has_values(top_k_index) else ALL_EXPERTS_FUNCTIONS["batched_mm"]
        else:
            chosen = Experts.in_turn if self.lifts(hidden_states, top_k_index) else dispatched
        return chosen(self, hidden_states, top_k_index, top_k_weights)

    experts_class.forward = forward
    return experts_class


# What the interface needs to know about an experts class is fixed where it is decorated.
@picks_faster
@use_experts_implementation
class GatedExperts(GatedProjection):
    """Gated experts without biases (Mixtral, DeepSeek-V3, Qwen3)."""


@picks_faster
@use_experts_implementation(has_bias=True)
class GatedBiasExperts(GatedProjection):
    """Gated experts with biases (gpt-oss)."""

    has_projection_bias = True


@picks_faster
@use_experts_implementation(has_gate=False)
class PlainExperts(PlainProjection):
    """Experts without a gate (Nemotron 3)."""


@picks_faster
@use_experts_implementation(has_gate=False, has_bias=True)
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
