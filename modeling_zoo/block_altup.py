"""AltUp and LAuReL: a wide residual of which each layer computes a part, and a low-rank one beside attention.

streams [N, D] ── predict ─┬─ stream a ── layer ── minus what was predicted ─┐
                           └──────────────────────────────────────── + c · ──┴── streams
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from configuration_zoo import ZooConfig

from .norms import make_norm
from .ops_effective_weight import basis_weight


class AltUp(nn.Module):
    """Around one layer: ŝ = s + P(s_a) s, what the layer makes of ŝ_a, y, and s' = ŝ + (1 + c(y)) (y - ŝ_a).

    P `[N, N]` and c `[N]` are linear in m = tanh(W norm(stream) / D), N numbers of the computed stream a. (Alternating
    updates, Baykal et al. 2023, arXiv 2301.13310.)
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        own, size = config.block_config, config.hidden_size
        self.count, self.active, self.clip = own["altup_num_inputs"], own["altup_active_idx"], own["altup_coef_clip"]
        self.router_norm = make_norm(config, size, cast_input=True)
        self.modality_router = nn.Linear(size, self.count, bias=False)
        self.prediction_coefs = nn.Linear(self.count, self.count**2, bias=False)
        self.correction_coefs = nn.Linear(self.count, self.count, bias=False)

    def computed(self, streams: torch.Tensor) -> torch.Tensor:
        """The residual stream that the layer computes with, `[B, T, N, D]` → `[B, T, D]`."""
        return streams[:, :, self.active]

    def coefficients(self, linear: nn.Linear, stream: torch.Tensor) -> torch.Tensor:
        """W_c tanh(W norm(x) / D), `[B, T, D]` → `[B, T, outputs]`; W_c is clamped in training."""
        normed = self.router_norm(stream)
        modalities = torch.tanh(self.modality_router(normed * normed.shape[-1] ** -1.0).float()).to(normed.dtype)
        if self.training and self.clip is not None:
            matrix = basis_weight(linear, self.count, modalities).clamp(-self.clip, self.clip)
            return F.linear(modalities, matrix).to(stream.dtype)
        return linear(modalities).to(stream.dtype)

    def predict(self, streams: torch.Tensor) -> torch.Tensor:
        """s + P s, `[B, T, N, D]`."""
        mixing = self.coefficients(self.prediction_coefs, self.computed(streams))
        return streams + torch.matmul(mixing.unflatten(-1, (self.count, self.count)), streams)

    def correct(self, predicted: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """ŝ + (1 + c) (y - ŝ_a), of `[B, T, N, D]` and y `[B, T, D]`."""
        weights = self.coefficients(self.correction_coefs, output) + 1.0
        return predicted + weights.unsqueeze(-1) * (output - self.computed(predicted)).unsqueeze(2)


def as_large_as(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x `[..., D]` with the root mean square of `other`."""
    wanted = other.square().mean(-1, keepdim=True).sqrt()
    return x * wanted / x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()


class AltUpEnds(nn.Module):
    """Both ends of the streams: the first starts as the embedding, every other one as a map of it; the last norm reads
    the mean of the first and of maps of the others, all as large as the first (Gemma 3n)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        size, others = config.hidden_size, config.block_config["altup_num_inputs"] - 1
        self.altup_projections = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(others))
        self.altup_unembed_projections = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(others))

    def spread(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` → `[B, T, N, D]`."""
        streams = [as_large_as(linear(hidden_states), hidden_states) for linear in self.altup_projections]
        return torch.stack((hidden_states, *streams), dim=2)

    def forward(self, streams: torch.Tensor) -> torch.Tensor:
        """`[B, T, N, D]` → `[B, T, D]`."""
        first, *others = streams.unbind(2)
        maps = zip(self.altup_unembed_projections, others, strict=True)
        mapped = [as_large_as(linear(other.to(linear.weight.dtype)).to(first.dtype), first) for linear, other in maps]
        return torch.stack((first, *mapped)).mean(0)


class Laurel(nn.Module):
    """(x + n + norm(B A n)) / √2, n what attention read and x the residual stream behind it, both `[B, T, D]`.

    (Learned augmented residual layer of low rank, Menghani et al. 2024, arXiv 2411.07501, §2; Gemma 3n.)
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        size, rank = config.hidden_size, config.block_config["laurel_rank"]
        self.linear_left = nn.Linear(size, rank, bias=False)
        self.linear_right = nn.Linear(rank, size, bias=False)
        self.post_laurel_norm = make_norm(config, size)

    def forward(self, hidden_states: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        augmented = normed + self.post_laurel_norm(self.linear_right(self.linear_left(normed)))
        return (hidden_states + augmented) / math.sqrt(2)


LAUREL = {"block_config.laurel_rank": Laurel}
