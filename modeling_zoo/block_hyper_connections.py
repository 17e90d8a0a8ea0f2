"""Hyper-connections: N residual streams, and what a sub-layer reads from them and writes to them, token by token.

streams [N, D] ─┬─ Σ pre_n · stream_n ── sub-layer ── post_n · output ── + ── streams
                └──────────────── combᵀ · streams ─────────────────────┘
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig


def doubly_stochastic(weights: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
    """Rows and columns of positive `[..., N, N]` normed alternately until both sum to one, columns first and last.

    (Sinkhorn & Knopp 1967.)
    """
    weights = weights / (weights.sum(dim=-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        weights = weights / (weights.sum(dim=-1, keepdim=True) + eps)
        weights = weights / (weights.sum(dim=-2, keepdim=True) + eps)
    return weights


class StreamWeights(nn.Module):
    """W x̂ · scale + base in float32, x̂ the streams of a token side by side and normed, `[B, T, N, D]` → `[B, T, out]`.

    Its parameters stay float32 whatever the model's dtype; `scale` has one number for each of `parts`.
    """

    def __init__(self, config: ZooConfig, parts: tuple[int, ...]):
        super().__init__()
        self.count, self.eps, self.norm_eps, self.parts = config.hc_mult, config.hc_eps, config.norm_eps, parts
        self.magnitude = config.residual_factors["stream"] or 2
        wide = {"dtype": torch.float32}
        self.fn = nn.Parameter(torch.empty(sum(parts), self.count * config.hidden_size, **wide))
        self.base = nn.Parameter(torch.empty(sum(parts), **wide))
        self.scale = nn.Parameter(torch.empty(len(parts), **wide))

    def initialize(self, std: float) -> None:
        init.normal_(self.fn, mean=0.0, std=std)
        init.zeros_(self.base)
        init.ones_(self.scale)

    def weights(self, streams: torch.Tensor) -> list[torch.Tensor]:
        """One tensor `[B, T, part]` for each of `parts`."""
        flat = streams.flatten(2).float()
        flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.norm_eps)
        mixed = F.linear(flat, self.fn.float()).split(self.parts, dim=-1)
        rows = zip(mixed, self.scale.float(), self.base.float().split(self.parts), strict=True)
        return [part * scale + base for part, scale, base in rows]

    def collapse(self, streams: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ (sigmoid(w_n) + eps) · stream_n, `[B, T, N, D]` and `[B, T, N]` → `[B, T, D]`."""
        read = torch.sigmoid(weights) + self.eps
        return (read.unsqueeze(-1) * streams).sum(dim=2).to(streams.dtype)


class HyperConnection(StreamWeights):
    """Around one sub-layer: its input out of the streams, then combᵀ · streams + post · output.

    post = m sigmoid(w), comb = doubly stochastic softmax(w): mixing neither grows nor forgets. (mHC, Xie et al. 2025,
    arXiv 2512.24880, §4.)
    """

    def __init__(self, config: ZooConfig):
        super().__init__(config, (config.hc_mult, config.hc_mult, config.hc_mult**2))
        self.iterations = config.hc_sinkhorn_iters

    def forward(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, T, N, D]` → what the sub-layer reads `[B, T, D]`, post `[B, T, N]`, comb `[B, T, N, N]`."""
        read, post, comb = self.weights(streams)
        comb = torch.softmax(comb.unflatten(-1, (self.count, self.count)), dim=-1) + self.eps
        post = self.magnitude * torch.sigmoid(post)
        return self.collapse(streams, read), post, doubly_stochastic(comb, self.iterations, self.eps)

    @staticmethod
    def write(streams: torch.Tensor, output: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
        """combᵀ · streams + post · output, `[B, T, N, D]`."""
        mixed = torch.matmul(comb.to(streams.dtype).transpose(-1, -2), streams)
        return post.to(streams.dtype).unsqueeze(-1) * output.unsqueeze(-2) + mixed


class IndependentConnection(StreamWeights):
    """The same where the streams do not mix: streams + post · output, post = m sigmoid(w) + eps, added in float32 (Hy4,
    Tencent 2026)."""

    def __init__(self, config: ZooConfig):
        super().__init__(config, (config.hc_mult, config.hc_mult))

    def forward(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, N, D]` → what the sub-layer reads `[B, T, D]`, post `[B, T, N]`."""
        read, post = self.weights(streams)
        return self.collapse(streams, read), self.magnitude * torch.sigmoid(post) + self.eps

    @staticmethod
    def write(streams: torch.Tensor, output: torch.Tensor, post: torch.Tensor) -> torch.Tensor:
        """streams + post · output, `[B, T, N, D]`."""
        return (post.unsqueeze(-1) * output.float().unsqueeze(-2) + streams.float()).to(streams.dtype)


# By whether the streams mix.
CONNECTIONS = {True: HyperConnection, False: IndependentConnection}


class StreamHead(StreamWeights):
    """Both ends of the streams: all start as the embedding; a weighted sum of them is what the last norm reads."""

    def __init__(self, config: ZooConfig):
        super().__init__(config, (config.hc_mult,))

    def spread(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` → `[B, T, N, D]`."""
        return hidden_states.unsqueeze(2).expand(-1, -1, self.count, -1).contiguous()

    def forward(self, streams: torch.Tensor) -> torch.Tensor:
        """`[B, T, N, D]` → `[B, T, D]`."""
        return self.collapse(streams, self.weights(streams)[0])
