"""The short convolution in front of a recurrence, whose last inputs a cache keeps."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn
from transformers import initialization as init

from .cache_recurrent_view import RecurrentCacheView
from .mlp_dense import activation_named
from .ops_convolution import convolve, convolve_token
from .ops_own_part import own_channels
from .recurrent_rows import TokenRows


class ShortConvolution(nn.Conv1d):
    """act(Σ_j weight_j ∘ x_(t - K + 1 + j) + bias), `[B, T, C]` -> `[B, T, C]` (H3, Fu et al. 2022; Mamba).

    The sum is rounded to the dtype of the weight before the activation, the result to that of the input. The inputs are
    what the linear maps `sources` give; where a rank has some of their rows, it convolves those.
    """

    def __init__(
        self,
        channels: int,
        taps: int,
        bias: bool = False,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, channels, taps, groups=channels, bias=bias, dtype=dtype)
        self.activation = None if activation in (None, "none") else activation_named(activation)

    def initialize(self, std: float) -> None:
        bound = self.kernel_size[0] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(
        self, inputs: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows, sources: Sequence[nn.Module] = ()
    ) -> torch.Tensor:
        taps, weight = self.kernel_size[0], own_channels(self.weight.squeeze(1), sources)
        bias = own_channels(self.bias, sources)
        held = cache.held_window(inputs, taps) if rows.valid is None else None
        if held is not None:
            return convolve_token(inputs, held, weight, bias, self.activation)
        inputs = rows.mask_padding(inputs)
        output = convolve(inputs, weight, bias, self.activation, cache.conv_window(taps), rows.packed)
        cache.store_conv_inputs(inputs, taps, rows)
        return output


class NoConvolution(nn.Module):
    """act(x): what is left of a convolution of no taps."""

    def __init__(self, activation: str | None = None):
        super().__init__()
        self.activation = None if activation in (None, "none") else activation_named(activation)

    def forward(
        self, inputs: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows, sources: Sequence[nn.Module] = ()
    ) -> torch.Tensor:
        return inputs if self.activation is None else self.activation(inputs)


def make_convolution(settings: SimpleNamespace, channels: int) -> nn.Module:
    """The convolution of `channels` channels that the settings ask for, or its activation alone."""
    if not settings.conv_kernel_dim:
        return NoConvolution(settings.act)
    dtype = torch.float32 if settings.float32_parameters else None
    return ShortConvolution(channels, settings.conv_kernel_dim, settings.conv_bias, settings.act, dtype)
