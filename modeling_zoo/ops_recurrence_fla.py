"""flash-linear-attention's Triton kernels for the recurrences, where the tensors are on a GPU and it is installed."""

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .ops_dispatch import HALF_DTYPES, is_traced

# The widest key head of the kernels with a delta rule.
MAX_KEY_WIDTH = 256
# The arguments of a kernel that have a row per token.
PER_TOKEN = ("q", "k", "v", "beta", "g", "gk")
# (delta, granularity) of the kernels that read one key head for several heads of values, from this version on.
GROUPED_HEADS, GROUPED_SINCE = {(True, "head"), (True, "channel")}, (0, 6)
# (kernel, name of its decay argument).
Kernel = tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], str | None]


def load_kernels() -> dict[tuple[bool, str], tuple[Kernel, Kernel]]:
    """{(delta, granularity): (kernel for many tokens, kernel for one)}; empty without the library, or where torch is
    built for no GPU. Whether one is there is not asked: a process that has asked cannot fork one that uses it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return {}
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


# Looked for once, when this file is imported: an import inside a graph would break it.
FLA_KERNELS = load_kernels()


def grouped_heads() -> set[tuple[bool, str]]:
    """`GROUPED_HEADS` where the library that is installed has them."""
    found = re.findall(r"\d+", getattr(sys.modules.get("fla"), "__version__", "0"))
    return GROUPED_HEADS if tuple(int(part) for part in found[:2]) >= GROUPED_SINCE else set()


TAKE_GROUPS = grouped_heads()


def has_kernels(device: torch.device) -> bool:
    """Whether recurrences on `device` can go to flash-linear-attention."""
    return device.type == "cuda" and bool(FLA_KERNELS)


def can_run_kernel(query: torch.Tensor, packed: Any = None) -> bool:
    """Whether a recurrence with queries `[B, L, H', K]` goes to flash-linear-attention.

    Its kernels are made for 16 bits: some refuse float32, others multiply in TF32. A graph cannot hold the search for
    the ends of packed sequences.
    """
    fits = query.dtype in HALF_DTYPES and query.shape[-1] <= MAX_KEY_WIDTH
    return has_kernels(query.device) and fits and not (packed is not None and packed.cu_seqlens is None and is_traced())


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

    Packed sequences the kernels take end to end, `[1, B · L, ...]`, with a state for each. In a graph without gradients
    all of it is one node; with gradients the kernels break the graph, as the library wants.
    """
    single = query.shape[1] == 1 and not torch.is_grad_enabled()
    traced = is_traced() and not torch.is_grad_enabled()
    run = FLA_OPERATION.run if traced else call_kernel
    lengths = None if packed is None else packed.cumulative_lengths()
    inputs = (query, key, value, beta, log_decay, state, lengths)
    output, states = run(*inputs, delta, scale, normalize, single)
    return output, states if packed is None else states[packed.last_in_row()]


def call_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    state: torch.Tensor | None,
    lengths: torch.Tensor | None,
    delta: bool,
    scale: float,
    normalize: bool,
    single: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output `[B, L, H, V]`, states `[B, H, K, V]`, or one for each of the sequences with these cumulative `lengths`).

    Kernels without a delta rule know no beta, and most no shared key heads: keys are scaled and repeated first.
    """
    granularity = "none" if log_decay is None else "channel" if log_decay.dim() == 4 else "head"
    kernel, decay_name = FLA_KERNELS[delta, granularity][single]
    group = value.shape[2] // key.shape[2]
    if group > 1 and (delta, granularity) not in TAKE_GROUPS:
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
    if lengths is None:
        return kernel(**arguments)
    joined = {name: arguments[name].flatten(0, 1).unsqueeze(0) for name in PER_TOKEN if arguments.get(name) is not None}
    output, states = kernel(**arguments | joined, cu_seqlens=lengths)
    return output.view(value.shape), states


def empty_results(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    state: torch.Tensor | None,
    lengths: torch.Tensor | None,
    *options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `call_kernel` returns, without the numbers."""
    count = value.shape[0] if lengths is None else lengths.shape[0] - 1
    shape = (count, value.shape[2], query.shape[-1], value.shape[-1])
    return value.new_empty(value.shape, dtype=query.dtype), value.new_empty(shape, dtype=torch.float32)


def register_kernels(module: str) -> SimpleNamespace:
    """`call_kernel` as an operation of torch, which a compiled graph holds as one node.

    Its name is made of that of this module: a process can hold several copies of this file.
    """
    name = "recurrence_" + re.sub(r"\W", "_", module)
    while hasattr(torch.ops.zoo, name):
        name += "_"
    tensors = "Tensor query, Tensor key, Tensor value, Tensor? beta, Tensor? log_decay, Tensor? state, Tensor? lengths"
    library = torch.library.Library("zoo", "FRAGMENT")
    library.define(f"{name}({tensors}, bool delta, float scale, bool normalize, bool single) -> (Tensor, Tensor)")
    library.impl(name, call_kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zoo::{name}", empty_results, lib=library)
    return SimpleNamespace(run=getattr(torch.ops.zoo, name).default, library=library)


FLA_OPERATION = register_kernels(__name__)
