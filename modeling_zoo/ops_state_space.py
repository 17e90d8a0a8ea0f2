"""State space models and diagonal recurrences: h_t = a_t ∘ h_(t-1) + b_t with a state per channel or a matrix per head.

All arithmetic is in the dtype of the state: float32, or float64 for float64 inputs. Every function takes the state it
starts from (None for zeros) and returns (output, state). A single token with a state updates that state in place when
gradients are off. `packed`: rows hold several sequences (PackedSequences, without a state), each from zeros on.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx

from .ops_packing import PackedSequences
from .ops_recurrence import linear_attention, state_dtype
from .ops_state_space_kernels import (
    CHANNEL_SCAN,
    STATE_SCAN,
    STATE_STEP,
    selective_scan_by_kernel,
    state_space_duality_by_kernel,
    suits_state_kernel,
)

# Numbers of state that a selective scan holds at once, over all the tokens of a segment.
SCAN_BUDGET = 1 << 21
# The derivative of a root at 0 is unbounded; this bounds it (Griffin's implementation).
LARGEST_ROOT_GRADIENT = 1000.0


def diagonal_scan(decay: torch.Tensor, write: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """h_t = decay_t ∘ h_(t-1) + write_t: decay, write `[B, L, ...]`, h_0 `[B, ...]` -> every h, `[B, L, ...]`.

    About sqrt(L) chunks run side by side, then their starting states one after the other: 2·sqrt(L) steps for L.
    """
    length = write.shape[1]
    size = max(1, math.isqrt(length))
    padding = -length % size
    if padding:
        shape = (0, 0) * (write.dim() - 2) + (0, padding)
        decay, write = F.pad(decay, shape, value=1.0), F.pad(write, shape)
    # Unbound, not indexed: the gradient of an index is as large as all of it, and would be made for each step.
    decay, write = (states.unflatten(1, (-1, size)).unbind(2) for states in (decay, write))
    inside, product = [write[0]], [decay[0]]
    for kept, new in zip(decay[1:], write[1:], strict=True):
        inside.append(torch.addcmul(new, kept, inside[-1]))
        product.append(kept * product[-1])
    starts = []
    for kept, new in zip(product[-1].unbind(1), inside[-1].unbind(1), strict=True):
        starts.append(state)
        state = torch.addcmul(new, kept, state)
    starts = torch.stack(starts, dim=1).unsqueeze(2)
    states = torch.addcmul(torch.stack(inside, dim=2), torch.stack(product, dim=2), starts)
    return states.flatten(1, 2)[:, :length]


def state_space_duality(
    inputs: torch.Tensor,
    time_step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- e**(Δ A) S + Δ B xᵀ, y = Sᵀ C + D x: linear attention with queries C, keys B, beta Δ (Mamba-2).

    inputs x `[B, L, H, P]`; time_step Δ `[B, L, H]`; A < 0 and D `[H]`; B and C `[B, L, groups, N]`; state
    `[B, H, N, P]`. Dao and Gu 2024, "Transformers are SSMs", §6.
    """
    time_step = time_step.to(state_dtype(time_step, inputs))
    by_step = state is not None and inputs.shape[1] == 1
    if suits_state_kernel(STATE_STEP if by_step else STATE_SCAN, inputs, state, packed):
        return state_space_duality_by_kernel(inputs, time_step, A, B, C, D, state)
    arguments = (C, B, inputs, time_step, time_step * A, state)
    output, state = linear_attention(*arguments, scale=1.0, packed=packed)
    return torch.addcmul(output, inputs, D.unsqueeze(-1)), state


def selective_scan(
    inputs: torch.Tensor,
    time_step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_nc <- e**(Δ_c A_cn) S_nc + Δ_c x_c B_n, y_c = Σ_n S_nc C_n + D_c x_c (Mamba).

    inputs x, time_step Δ `[B, L, C]`; A < 0 `[C, N]`; B and C `[B, L, N]`; D `[C]`; state `[B, N, C]`.
    Gu and Dao 2023, algorithm 2.
    """
    dtype = state_dtype(inputs, time_step)
    batch, length, channels = inputs.shape
    kernel = CHANNEL_SCAN if state is None else STATE_STEP
    if (state is None or length == 1) and suits_state_kernel(kernel, inputs, state, packed):
        return selective_scan_by_kernel(inputs, time_step, A, B, C, D, state)
    rates = A.to(dtype).T.contiguous()
    if state is None:
        state = rates.new_zeros(batch, *rates.shape)
    inputs, time_step, B, C = (states.to(dtype) for states in (inputs, time_step, B, C))
    written = time_step * inputs
    if length == 1 and not torch.is_grad_enabled():
        state.mul_((time_step * rates).exp())
        state.baddbmm_(B.transpose(1, 2), written)
        return torch.bmm(C, state) + D * inputs, state
    if packed is not None:
        # After an endless step nothing is left, whatever the rate: e**(-∞ A) = 0.
        time_step = time_step.masked_fill(packed.starts.unsqueeze(-1), torch.finfo(dtype).max)
    segment = max(1, SCAN_BUDGET // (batch * rates.numel()))
    outputs = []
    for step, new, key, query in zip(
        *(states.split(segment, dim=1) for states in (time_step, written, B, C)), strict=True
    ):
        decay = (step.unsqueeze(2) * rates).exp()
        states = _scan_rows(decay, new.unsqueeze(2) * key.unsqueeze(3), state)
        state = states[:, -1]
        outputs.append((query.unsqueeze(2) @ states).squeeze(2))
    return torch.cat(outputs, dim=1) + D * inputs, state


def grouped_selective_scan(
    inputs: torch.Tensor,
    time_step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`selective_scan` with a B and a C for each of G groups of channels: B and C `[B, L, G, N]` (Zamba)."""
    groups = B.shape[2]
    if groups == 1:
        return selective_scan(inputs, time_step, A, B.squeeze(2), C.squeeze(2), D, state, packed)
    channels = [states.chunk(groups, dim=-1) for states in (inputs, time_step)]
    states = [None] * groups if state is None else state.chunk(groups, dim=-1)
    own = (A.chunk(groups), B.unbind(2), C.unbind(2), D.chunk(groups), states)
    results = [selective_scan(*part, packed) for part in zip(*channels, *own, strict=True)]
    return tuple(torch.cat(parts, dim=-1) for parts in zip(*results, strict=True))


def _scan_rows(decay, write, state):
    # One token after the other: the rows of a selective scan are long enough to make a step worth its call.
    states = []
    for kept, new in zip(decay.unbind(1), write.unbind(1), strict=True):
        state = torch.addcmul(new, kept, state)
        states.append(state)
    return torch.stack(states, dim=1)


class BoundedRoot(torch.autograd.Function):
    """sqrt(x) with a derivative of at most `LARGEST_ROOT_GRADIENT`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient / torch.sqrt((4.0 * x).clamp(min=LARGEST_ROOT_GRADIENT**-2))


def gated_linear_unit(
    inputs: torch.Tensor,
    log_decay: torch.Tensor,
    state: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h <- a h + sqrt(1 - a²) x with a = e**g: inputs x, log_decay g `[B, L, C]`, state `[B, C]`.

    Where `first` `[B, L]` is set a sequence starts: h <- x. Where `valid` is not, nothing happens: h <- h. Where
    `packed` has a start, the h before is 0. The real-gated linear recurrent unit of De et al. 2024, "Griffin", §2.4.
    """
    dtype = state_dtype(inputs, log_decay)
    inputs, log_decay = inputs.to(dtype), log_decay.to(dtype)
    if state is None:
        state = inputs.new_zeros(inputs.shape[0], inputs.shape[2])
    decay = log_decay.exp()
    write = inputs * BoundedRoot.apply(-torch.expm1(2 * log_decay))
    if first is not None:
        first = first.unsqueeze(-1)
        decay, write = decay.masked_fill(first, 0.0), torch.where(first, inputs, write)
    if packed is not None:
        decay = decay.masked_fill(packed.starts.unsqueeze(-1), 0.0)
    if valid is not None:
        ignored = ~valid.unsqueeze(-1)
        decay, write = decay.masked_fill(ignored, 1.0), write.masked_fill(ignored, 0.0)
    if inputs.shape[1] == 1:
        states = torch.addcmul(write[:, 0], decay[:, 0], state).unsqueeze(1)
    else:
        states = diagonal_scan(decay, write, state)
    return states, states[:, -1]
