"""Norms with a gate of their own: what a sub-layer reads is let through by itself, through a few channels."""

import torch
import torch.nn.functional as F
from torch import nn

from configuration_zoo import ZooConfig

from .block_layer import ZooDecoderLayer


class GatedNorm(nn.Module):
    """y · σ(W_b silu(W_a y)), y = norm(x): `[B, T, D]` → `[B, T, D]`, W_a `[R, D]`, W_b `[D, R]`, R =
    `block_config.gated_norm_rank`."""

    def __init__(self, config: ZooConfig, norm: nn.Module):
        super().__init__()
        self.norm = norm
        rank = config.block_config["gated_norm_rank"]
        self.a_proj = nn.Linear(config.hidden_size, rank, bias=False)
        self.b_proj = nn.Linear(rank, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        gate = self.b_proj(F.silu(self.a_proj(normed)))
        return (normed * torch.sigmoid(gate.float())).to(normed.dtype)


class GatedNormLayer(ZooDecoderLayer):
    """x + mixer(g(norm(x))), then x + mlp(g(norm(x))), g(y) = y · σ(W_b silu(W_a y)) (A.X K2)."""

    gated = ("attn_norm", "mlp_norm")

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        for slot in self.gated:
            setattr(self, slot, GatedNorm(config, getattr(self, slot)))


class GatedAttnNormLayer(GatedNormLayer):
    """x + mixer(g(norm(x))), then x + mlp(norm(x)): the gate in front of the mixer alone (A.X K2's dense layers)."""

    gated = ("attn_norm",)
