"""Depthwise causal convolutions of a few taps, over whole sequences and for one token, with the activation behind."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .ops_packing import PackedSequences
from .ops_state_space_kernels import CONVOLUTION, CONVOLUTION_STEP, convolve_by_kernel, convolve_token_by_kernel

# What causal-conv1d computes behind the sum, by the class of the activation, and the most taps it has.
FUSED_ACTIVATIONS, MOST_TAPS = {"NoneType": None, "SiLU": "silu", "SiLUActivation": "silu"}, 4


def convolve(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: Callable | None = None,
    window: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> torch.Tensor:
    """act(`causal_convolution`): the sum is rounded to the dtype of the weight, the result to that of the input."""
    if packed is None and fits_kernel(weight, activation) and CONVOLUTION.suits(inputs, weight):
        return convolve_by_kernel(inputs, weight, bias, FUSED_ACTIVATIONS[type(activation).__name__], window)
    output = causal_convolution(inputs, weight, bias, window, packed).to(weight.dtype)
    return (output if activation is None else activation(output)).to(inputs.dtype)


def convolve_token(
    inputs: torch.Tensor,
    held: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: Callable | None = None,
) -> torch.Tensor:
    """`convolve` of one token `[B, 1, C]` behind the window `held` `[B, C, K]`, which is moved on in place."""
    if fits_kernel(weight, activation) and CONVOLUTION_STEP.suits(inputs, weight):
        return convolve_token_by_kernel(inputs, held, weight, bias, FUSED_ACTIVATIONS[type(activation).__name__])
    output = convolve_window(move_window(held, inputs), weight, bias).to(weight.dtype)
    return (output if activation is None else activation(output)).to(inputs.dtype)


def fits_kernel(weight: torch.Tensor, activation: Callable | None) -> bool:
    """Whether causal-conv1d has this many taps and this activation."""
    return 2 <= weight.shape[1] <= MOST_TAPS and type(activation).__name__ in FUSED_ACTIVATIONS


def move_window(held: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The window `held` `[B, C, K]`, in place, without its first input and with `[B, 1, C]` behind."""
    # Rolled as one row: two plain copies, where a shift within each channel would be many short ones.
    window = held.roll(-1)
    window.select(-1, -1).copy_(inputs.squeeze(1))
    return held.copy_(window)


def causal_convolution(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    window: torch.Tensor | None = None,
    packed: PackedSequences | None = None,
) -> torch.Tensor:
    """y_t = Σ_j weight_j ∘ x_(t - K + 1 + j) + bias: x `[B, L, C]`, weight `[C, K]`, window `[B, C, K]`; in float32.

    K products over the whole sequence: on a CPU several times faster than torch's grouped convolution, and without its
    transposes. The window holds the inputs before the first one, None for zeros. `packed`: where rows hold several
    sequences (PackedSequences), before the first input of each stand zeros too.
    """
    taps, length = weight.shape[1], inputs.shape[1]
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    if window is None:
        line = F.pad(inputs, (0, 0, taps - 1, 0))
    else:
        line = torch.cat([window[..., 1:].transpose(1, 2).to(inputs.dtype), inputs], dim=1)
    line, (first, *weights) = line.to(dtype), weight.to(dtype).unbind(1)
    output = _within(line[:, :length] * first, taps - 1, packed)
    for tap, scale in enumerate(weights, start=1):
        states = line[:, tap : tap + length]
        if packed is None:
            output = output.addcmul_(states, scale)
        else:
            output = output.add_(_within(states * scale, taps - 1 - tap, packed))
    return output if bias is None else output.add_(bias.to(dtype))


def _within(products, distance, packed):
    """Products `[B, L, C]` with inputs `distance` tokens back; those of another sequence are zeroed in place."""
    if packed is None or not distance:
        return products
    return products.masked_fill_((packed.places < distance).unsqueeze(-1), 0.0)


def convolve_window(window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Σ_j weight_j ∘ x_j + bias for one token, `[B, 1, C]`: window `[B, C, K]`, which ends with it; in float32."""
    dtype = torch.promote_types(window.dtype, torch.float32)
    if window.device.type != "cpu":
        # Fewer calls, where each starts a kernel.
        output = (window.to(dtype) * weight).sum(-1)
        return (output if bias is None else output.add_(bias)).unsqueeze(1)
    first, *inputs = window.to(dtype).unbind(-1)
    scale, *weights = weight.to(dtype).unbind(-1)
    output = first * scale
    for one, scale in zip(inputs, weights, strict=True):
        output = output.addcmul_(one, scale)
    return (output if bias is None else output.add_(bias.to(dtype))).unsqueeze(1)
