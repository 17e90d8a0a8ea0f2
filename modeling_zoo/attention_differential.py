"""Attention whose weights are the difference of two softmaxes."""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .norms import RMSNorm
from .ops_attention_bands import AttentionMask

# Spread of the vectors that make λ, before training.
LAMBDA_STD = 0.1


class DifferentialAttention(GroupedQueryAttention):
    """(softmax(q₁ k₁ᵀ · scale) - λ softmax(q₂ k₂ᵀ · scale)) v, so that what both halves see alike cancels.

        λ = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ₀        λ₀ = 0.8 - 0.6 exp(-0.3 · layer)
        y = W_o ((1 - λ₀) rms(o))                           o [B, T, H / 2, 2v]

    Head h of the first half of the query heads is paired with head h of the second; a pair reads the values of two
    key-value heads side by side, and its output passes an RMS norm without a weight. (Differential Transformer, Ye et
    al. 2024, arXiv 2410.05258, §2.1, with the heads of a pair half of all heads apart, as in DiffLlama.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.lambda_start = 0.8 - 0.6 * math.exp(-0.3 * layer_idx)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.empty(self.head_dim)) for _ in range(4)
        )
        self.pair_norm = RMSNorm(2 * self.value_width, config.norm_eps, affine=False)

    def initialize(self, std: float) -> None:
        super().initialize(std)
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            init.normal_(vector, mean=0.0, std=LAMBDA_STD)

    def weight_of_second(self, dtype: torch.dtype) -> torch.Tensor:
        """λ, one number; each exponential is rounded to `dtype`."""
        first = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1, dtype=torch.float32)).to(dtype)
        second = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2, dtype=torch.float32)).to(dtype)
        return first - second + self.lambda_start

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H, v]`, the weights of all softmaxes or None)."""
        pairs = torch.cat(value.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)
        attn_output, weights = super().attend(query, key, pairs, attention_mask, **kwargs)
        first, second = attn_output.chunk(2, dim=2)
        difference = first - self.weight_of_second(query.dtype) * second
        attn_output = (1 - self.lambda_start) * self.pair_norm(difference)
        return attn_output.reshape(*attn_output.shape[:2], -1, self.value_width), weights
