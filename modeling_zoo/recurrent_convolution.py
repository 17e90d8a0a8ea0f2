"""Depthwise causal convolutions of a few taps, with the inputs they still need kept in a cache."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .mlp_dense import activation_named


def causal_convolution(inputs, weight, bias=None, window=None, packed=None):
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


def _within(products, reach, packed):
    """Products `[B, L, C]` with inputs `reach` tokens back, in place without those of another sequence."""
    if packed is None or not reach:
        return products
    return products.masked_fill_((packed.places < reach).unsqueeze(-1), 0.0)


def convolve_one(window, weight, bias=None):
    """Σ_j weight_j ∘ x_j + bias, `[B, 1, C]`, of a window `[B, C, K]` that ends with the token at hand; in float32."""
    dtype = torch.promote_types(window.dtype, torch.float32)
    first, *inputs = window.to(dtype).unbind(-1)
    scale, *weights = weight.to(dtype).unbind(-1)
    output = first * scale
    for one, scale in zip(inputs, weights, strict=True):
        output = output.addcmul_(one, scale)
    return (output if bias is None else output.add_(bias.to(dtype))).unsqueeze(1)


class ShortConvolution(nn.Conv1d):
    """activation(causal_convolution(x)), `[B, T, C]` -> `[B, T, C]`, over the inputs before it and behind (Mamba, H3).

    The sum is rounded to the dtype of the weight before the activation, the result to that of the input.
    """

    def __init__(self, channels, taps, bias=False, activation=None, dtype=None):
        super().__init__(channels, channels, taps, groups=channels, bias=bias, dtype=dtype)
        self.activation = None if activation in (None, "none") else activation_named(activation)

    def initialize(self, std):
        bound = self.kernel_size[0] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, inputs, memory, rows):
        taps, weight = self.kernel_size[0], self.weight.squeeze(1)
        window = memory.slide(inputs, taps) if rows.valid is None else None
        if window is not None:
            output = convolve_one(window, weight, self.bias)
        else:
            inputs = rows.silence(inputs)
            output = causal_convolution(inputs, weight, self.bias, memory.window(taps), rows.packed)
            memory.store_window(inputs, taps, rows)
        output = output.to(self.weight.dtype)
        if self.activation is not None:
            output = self.activation(output)
        return output.to(inputs.dtype)


class NoConvolution(nn.Module):
    """activation(x) where a short convolution could stand."""

    def __init__(self, activation=None):
        super().__init__()
        self.activation = None if activation in (None, "none") else activation_named(activation)

    def forward(self, inputs, memory, rows):
        return inputs if self.activation is None else self.activation(inputs)


def make_convolution(settings, channels):
    """The convolution of `channels` channels that the settings ask for, or its activation alone."""
    if not settings.conv_kernel_dim:
        return NoConvolution(settings.act)
    dtype = torch.float32 if settings.float32_parameters else None
    return ShortConvolution(channels, settings.conv_kernel_dim, settings.conv_bias, settings.act, dtype)
