"""flash-linear-attention's Triton kernels for the recurrences, where the tensors are on a GPU and it is installed."""

from functools import cache
from typing import Any

import torch

# The arguments of a kernel that have a row per token.
PER_TOKEN = ("q", "k", "v", "beta", "g", "gk")


@cache
def _installed():
    """{(delta, granularity): ((kernel, name of its decay argument) for many tokens, the same for one)}, or empty."""
    try:
        from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
        from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
    except Exception:  # an installation can also fail on the compiler or driver it looks for
        return {}
    simple = (chunk_simple_gla, "g"), (fused_recurrent_simple_gla, "g")
    return {
        (True, "none"): ((chunk_delta_rule, None), (fused_recurrent_delta_rule, None)),
        (True, "head"): ((chunk_gated_delta_rule, "g"), (fused_recurrent_gated_delta_rule, "g")),
        (True, "channel"): ((chunk_kda, "g"), (fused_recurrent_kda, "g")),
        (False, "none"): simple,
        (False, "head"): simple,
        (False, "channel"): ((chunk_gla, "g"), (fused_recurrent_gla, "gk")),
    }


def has_kernels(device: torch.device) -> bool:
    """Whether recurrences on `device` go to flash-linear-attention."""
    return device.type == "cuda" and bool(_installed())


def run_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    state: torch.Tensor | None,
    *,
    delta: bool,
    scale: float,
    normalize: bool = False,
    packed: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence of the file recurrences, in the dtype of the query with a float32 state; same arguments.

    The kernels know no shared key heads, and those without a delta rule no beta: keys are repeated and scaled first.
    Packed sequences they take end to end, `[1, B · L, ...]`, with a state for each.
    """
    granularity = "none" if log_decay is None else "channel" if log_decay.dim() == 4 else "head"
    single = query.shape[1] == 1 and not torch.is_grad_enabled()
    kernel, decay_name = _installed()[delta, granularity][single]
    group = value.shape[2] // key.shape[2]
    if group > 1:
        query, key = query.repeat_interleave(group, dim=2), key.repeat_interleave(group, dim=2)
    options = {"scale": scale, "initial_state": state, "output_final_state": True}
    if delta:
        options |= {"beta": beta.to(query.dtype), "use_qk_l2norm_in_kernel": normalize}
    elif beta is not None:
        key = key * beta.unsqueeze(-1)
    if log_decay is not None:
        options[decay_name] = log_decay.float()
    inputs = {"q": query, "k": key.to(query.dtype), "v": value.to(query.dtype)}
    arguments = {name: states.contiguous() for name, states in inputs.items()} | options
    if packed is None:
        return kernel(**arguments)
    joined = {name: arguments[name].flatten(0, 1).unsqueeze(0) for name in PER_TOKEN if arguments.get(name) is not None}
    output, states = kernel(**arguments | joined, cu_seqlens=packed.cumulative_lengths())
    return output.view(value.shape), states[packed.last_in_row()]
