"""Kernels of causal-conv1d and mamba-ssm, installed or from the Hub after `use_kernels=True`, by transformers' look-up.

transformers' own models call them where they are there. A function here is called where `KernelFunction.suits` says so;
the plain forms are those of `ops_convolution` and `ops_state_space`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.integrations import use_kernel_func_from_hub_with_fallback

from .ops_dispatch import is_eager_cuda
from .ops_packing import PackedSequences

LIBRARY_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Tokens that a scan computes side by side, as Mamba-2's published models do.
SCAN_CHUNK = 256


class KernelFunction:
    """A function of `package` by the look-up of transformers, which puts the Hub's in its place where it is asked to.

    `signature` is a function with the arguments that the kernel has; it is never called.
    """

    def __init__(self, package: str, signature: Callable):
        self.package, self.installed = package, find_spec(package) is not None
        self.call = use_kernel_func_from_hub_with_fallback(signature.__name__, package)(signature)

    def is_there(self) -> bool:
        """Whether the package is installed or a kernel of the Hub was put in its place."""
        call = self.call
        replaced = isinstance(call, nn.Module) and getattr(call.forward, "__func__", None) is not type(call).forward
        return self.installed or replaced

    def suits(self, *tensors: torch.Tensor) -> bool:
        """Whether to call it with these, of which the first says where: on a GPU, outside of a graph."""
        return is_eager_cuda(tensors[0]) and self.is_there() and all(one.dtype in LIBRARY_DTYPES for one in tensors)


def causal_conv1d_update(
    hidden_states: Any, conv_state: Any, weight: Any, bias: Any = None, activation: Any = None
) -> Any:
    raise NotImplementedError


def causal_conv1d_fn(hidden_states: Any, weight: Any, bias: Any = None, activation: Any = None, **kwargs: Any) -> Any:
    raise NotImplementedError


def selective_state_update(
    state: Any,
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    z: Any = None,
    **kwargs: Any,
) -> Any:
    raise NotImplementedError


def mamba_chunk_scan_combined(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    chunk_size: int,
    D: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    dt_softplus: bool = False,
    dt_limit: Any = (0.0, float("inf")),
    return_final_states: bool = False,
    **kwargs: Any,
) -> Any:
    raise NotImplementedError


def selective_scan_fn(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_other_library: bool = False,
    use_associative_scan: bool = False,
    **kwargs: Any,
) -> Any:
    raise NotImplementedError


CONVOLUTION_STEP = KernelFunction("causal_conv1d", causal_conv1d_update)
CONVOLUTION = KernelFunction("causal_conv1d", causal_conv1d_fn)
STATE_STEP = KernelFunction("mamba_ssm", selective_state_update)
STATE_SCAN = KernelFunction("mamba_ssm", mamba_chunk_scan_combined)
CHANNEL_SCAN = KernelFunction("mamba_ssm", selective_scan_fn)


# -- convolutions ------------------------------------------------------------------------------------------------------


def convolve_token_by_kernel(
    inputs: torch.Tensor, held: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """One token `[B, 1, C]` behind the window `held` `[B, C, K]`, which is moved on in place → `[B, 1, C]`."""
    output = CONVOLUTION_STEP.call(inputs.transpose(1, 2), held, weight, bias, activation)
    return output.transpose(1, 2)


def convolve_by_kernel(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    window: torch.Tensor | None,
) -> torch.Tensor:
    """A sequence `[B, L, C]` behind the inputs in `window` `[B, C, K]` (None: zeros) → `[B, L, C]`."""
    line, length = inputs.transpose(1, 2), inputs.shape[1]
    if window is not None:
        line = torch.cat([window[..., 1:].to(line.dtype), line], dim=-1)
    return CONVOLUTION.call(line, weight, bias, activation=activation)[..., -length:].transpose(1, 2)


# -- states ------------------------------------------------------------------------------------------------------------


def state_space_duality_by_kernel(
    inputs: torch.Tensor,
    time_step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ops_state_space.state_space_duality`: B and C are not repeated for the heads that share them."""
    B, C = B.to(inputs.dtype), C.to(inputs.dtype)
    if inputs.shape[1] == 1 and state is not None and not torch.is_grad_enabled():
        heads, width, states = state.shape[1], state.shape[3], state.shape[2]
        rates = A.view(-1, 1, 1).expand(heads, width, states)
        step = time_step[:, 0, :, None].expand(-1, -1, width)
        scale = D.view(-1, 1).expand(heads, width)
        arguments = (inputs[:, 0], step, rates, B[:, 0], C[:, 0], scale)
        return STATE_STEP.call(state.transpose(2, 3), *arguments).unsqueeze(1), state
    before = None if state is None else state.transpose(2, 3).contiguous()
    scanned = (inputs, time_step, A, B, C)
    output, after = STATE_SCAN.call(
        *scanned, chunk_size=SCAN_CHUNK, D=D, initial_states=before, return_final_states=True
    )
    return output, after.transpose(2, 3).contiguous().float()


def selective_scan_by_kernel(
    inputs: torch.Tensor,
    time_step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ops_state_space.selective_scan` of a whole sequence, or of one token behind a state."""
    B, C = B.to(inputs.dtype), C.to(inputs.dtype)
    if state is not None:
        output = STATE_STEP.call(state.transpose(1, 2), inputs[:, 0], time_step[:, 0], A, B[:, 0], C[:, 0], D)
        return output.unsqueeze(1), state
    inputs, time_step, B, C = (states.transpose(1, 2).contiguous() for states in (inputs, time_step, B, C))
    output, after = CHANNEL_SCAN.call(inputs, time_step.to(inputs.dtype), A, B, C, D, return_last_state=True)
    return output.transpose(1, 2), after.transpose(1, 2).contiguous().float()


def suits_state_kernel(
    kernel: KernelFunction, inputs: torch.Tensor, state: torch.Tensor | None, packed: PackedSequences | None
) -> bool:
    """Whether `inputs` `[B, L, ...]` behind `state` go to mamba-ssm: packed sequences do not, whose ends it does not
    know."""
    if packed is not None or not kernel.suits(inputs):
        return False
    return state is None or not torch.is_grad_enabled()
