"""Routed experts through transformers' experts interface, and what a CPU computes instead of a product in groups.

The plain form is the loop over experts in `Experts.forward`. The interface replaces it by the implementation the config
names: "eager" (the loop itself), "grouped_mm" (the default), "batched_mm" or what a user registers. Where that is
"grouped_mm", this file chooses: products in groups do not take every width and dtype, and a CPU has faster forms.

All take hidden states `[N, D]`, expert ids and weights `[N, k]` and give `[N, D]`. `experts` is a
`mlp_experts.Experts`. The id `num_experts` stands for no expert: expert parallelism marks the slots of other ranks so.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

from .ops_dispatch import HALF_DTYPES, has_values, is_eager_cpu_inference, use_fp32_gemm
from .ops_linear import MIN_PRODUCTS

# Rows per expert from which converting its matrices to float32 pays, and rows that share a converted matrix.
MIN_SHARING, MAX_SHARING = 64, 512
# What a product in groups takes: rows that are multiples of so many bytes, numbers no wider than so many.
GROUPED_BYTES, GROUPED_WIDTH = 16, 4


class ExpertsForms(ExpertsInterface):
    """transformers' interface, whatever is registered in it, with a chooser in place of "grouped_mm" and a
    check in front of "sonicmoe"."""

    def get_interface(self, experts_implementation: str, default: Callable) -> Callable:
        if experts_implementation == "grouped_mm":
            return partial(grouped_experts, loop=default)
        if experts_implementation == "sonicmoe":
            return sonicmoe_experts
        return ALL_EXPERTS_FUNCTIONS.get_interface(experts_implementation, default)


EXPERTS_FORMS = ExpertsForms()


def grouped_experts(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    loop: Callable,
) -> torch.Tensor:
    """Products in groups, or what is faster or possible in their place; `loop` is the plain form."""
    if is_single_token(experts, hidden_states):
        form = loop_single_token
    elif not fits_grouped_mm(experts, hidden_states):
        # A traced graph and the meta device have no numbers to choose experts by: a product for each slot.
        form = loop if has_values(top_k_index) else ALL_EXPERTS_FUNCTIONS["batched_mm"]
    elif use_fp32_loop(experts, hidden_states, top_k_index):
        form = fp32_loop
    else:
        form = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    return form(experts, hidden_states, top_k_index, top_k_weights)


def is_single_token(experts: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Whether `loop_single_token` is the faster form: a CPU's groups are one product for each of all experts, chosen or
    not."""
    # Asked before the number of tokens, which a traced graph must not be bound to.
    if not is_eager_cpu_inference(hidden_states) or torch.is_autocast_enabled("cpu"):
        return False
    plain = all(type(getattr(experts, name)) is nn.Parameter for name in (experts.input_projection, "down_proj"))
    return len(hidden_states) == 1 and plain


def loop_single_token(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """One token `[1, D]` through its own experts; equal to the product in groups to the last bit."""
    chosen, weights = top_k_index[0].tolist(), top_k_weights[0]
    here = [slot for slot, expert in enumerate(chosen) if expert < experts.num_experts]
    if len(here) < len(chosen):
        chosen, weights = [chosen[slot] for slot in here], weights[here]
    if not chosen:
        return torch.zeros_like(hidden_states)
    rows = hidden_states.expand(len(chosen), -1)
    inner = experts.activate(_row_by_row(experts, rows, experts.input_projection, chosen))
    output = _row_by_row(experts, inner, "down_proj", chosen) * weights[:, None]
    return output.unsqueeze(0).sum(dim=1).to(hidden_states.dtype)


def _row_by_row(experts, rows, projection, chosen):
    """Row i of `[k, i]` through the matrix of expert `chosen[i]`, `[k, o]`."""
    weight, bias = getattr(experts, projection), getattr(experts, f"{projection}_bias", None)
    pairs = zip(rows.split(1), chosen, strict=True)
    output = torch.cat([F.linear(row, weight[expert]) for row, expert in pairs])
    return output if bias is None else output + bias[chosen]


def fits_grouped_mm(experts: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Whether products in groups take rows of these widths in this dtype; on the meta device they take one dtype."""
    if hidden_states.element_size() > GROUPED_WIDTH or hidden_states.is_meta:
        return False
    unit = math.gcd(experts.hidden_dim, experts.intermediate_dim)
    # Wide enough in a half precision is wide enough in any: looking at the matrices may mean computing them.
    if HALF_DTYPES[0].itemsize * unit % GROUPED_BYTES == 0:
        return True
    return unit * experts.down_proj.element_size() % GROUPED_BYTES == 0


def use_fp32_loop(experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor) -> bool:
    """Whether `fp32_loop` is the faster form: enough rows for each expert, and matrices worth converting."""
    # Asked before the sizes, which a traced graph must not be bound to.
    if not use_fp32_gemm(hidden_states):
        return False
    many = top_k_index.numel() >= MIN_SHARING * experts.num_experts
    return many and MIN_SHARING * experts.down_proj[0].numel() >= MIN_PRODUCTS


def fp32_loop(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The loop over experts with products in float32: rounded after each, as in groups, and summed in float32.

    Some tokens at a time, so that the float32 sums stay small.
    """
    output, slots = torch.empty_like(hidden_states), top_k_index.shape[1]
    step = -(-MAX_SHARING * experts.num_experts // slots)
    for start in range(0, len(hidden_states), step):
        tokens, weights = hidden_states[start : start + step], top_k_weights[start : start + step].flatten()
        ids, order = top_k_index[start : start + step].flatten().sort()
        total = torch.zeros(tokens.shape, dtype=torch.float32)
        counts = torch.bincount(ids, minlength=experts.num_experts).tolist()
        for expert, rows in enumerate(order.split(counts)):
            if len(rows) and expert < experts.num_experts:
                here = rows // slots
                result = experts.run_expert(tokens[here], expert) * weights[rows, None]
                total.index_add_(0, here, result.to(output.dtype).float())
        output[start : start + step] = total
    return output


def sonicmoe_experts(experts: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """transformers' "sonicmoe"; raises ValueError for a config whose clamp, alpha or offset it would drop."""
    config = experts.config
    own = config.swiglu_config
    if not (config.swiglu_limit is own["alpha"] is own["up_offset"] is None):
        raise ValueError(
            "experts_implementation='sonicmoe' ignores swiglu_limit, swiglu_config.alpha and swiglu_config.up_offset, "
            "which this config sets: use 'grouped_mm', 'batched_mm' or 'eager'."
        )
    return ALL_EXPERTS_FUNCTIONS["sonicmoe"](experts, *args)


def run_slots(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """`experts` for the slots where `mask` `[N, k]` is true. The others cost nothing, but in a graph, whose shapes are
    fixed: there they run an expert with weight 0."""
    if not has_values(top_k_index):
        last = experts.num_experts - 1
        return experts(hidden_states, top_k_index.clamp(max=last), top_k_weights.masked_fill(~mask, 0.0))
    token, slot = mask.nonzero(as_tuple=True)
    results = experts(hidden_states[token], top_k_index[token, slot, None], top_k_weights[token, slot, None])
    return torch.zeros_like(hidden_states).index_add(0, token, results.to(hidden_states.dtype))
