"""Attention residuals: what a sub-layer reads is a softmax over depth, not the sum of all that came before.

blocks b_0 … b_k, running sum s ── softmax(w · norm(b)) ── Σ p b ── norm ── sub-layer ── + ── s
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .block_layer import ZooDecoderLayer
from .norms import make_norm
from .ops_cross_layer import FinishedBlocks


class DepthRead(nn.Module):
    """Σ_i p_i v_i, p = softmax_i(w · norm(v_i)), over n states v `[B, T, n, D]` of a token: w `[D]` is learned, the
    same for all tokens. Computed in float32 at least. (Kimi team 2026, arXiv 2603.15031.)"""

    def __init__(self, config: ZooConfig):
        super().__init__()
        config = config.outside_layers()
        self.norm = make_norm(config, config.hidden_size)
        self.query = nn.Parameter(torch.empty(config.hidden_size))

    def initialize(self, std: float) -> None:
        init.zeros_(self.query)

    def forward(self, finished: list[torch.Tensor], current: torch.Tensor) -> torch.Tensor:
        """Finished blocks and the running sum, `[B, T, D]` each → `[B, T, D]`."""
        wide = torch.promote_types(current.dtype, torch.float32)
        states = torch.stack((*finished, current), dim=2).to(wide)
        scores = F.linear(self.norm(states).to(wide), self.query.to(wide)[None]).squeeze(-1)
        weights = torch.softmax(scores, dim=-1).unsqueeze(-2)
        return torch.matmul(weights, states).squeeze(-2).to(current.dtype)


class AttentionResidualLayer(ZooDecoderLayer):
    """s + mixer(norm(r)), then s + mlp(norm(r')), r and r' read over depth; the first layer of a block leaves the sum s
    behind and starts another (Kimi K3).

    `finished_blocks` is one object for all layers; raises ValueError for a layer called without it.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        self.starts_block = layer_idx % config.block_config["attn_res_block_size"] == 0
        # The embedding alone is all that the first mixer can read.
        self.attn_res = DepthRead(config) if layer_idx > 0 else None
        self.mlp_res = DepthRead(config)

    def join(
        self, hidden_states: torch.Tensor, finished_blocks: FinishedBlocks | None = None, **context: Any
    ) -> torch.Tensor:
        """Raises ValueError for a layer without `finished_blocks`."""
        if finished_blocks is None:
            raise ValueError(
                f"Layer {self.layer_idx} of block_type 'attention_residual' needs `finished_blocks`, one object for "
                "all layers."
            )
        finished = finished_blocks.before(self.layer_idx, hidden_states)
        read = hidden_states if self.attn_res is None else self.attn_res(finished, hidden_states)
        mixed = self.mix(self.attn_norm(read), context)
        if self.starts_block:
            finished_blocks.put(self.layer_idx, hidden_states)
            finished = [*finished, hidden_states]
            hidden_states = mixed
        else:
            hidden_states = hidden_states + mixed
        return hidden_states + self.feed(self.mlp_norm(self.mlp_res(finished, hidden_states)), context)


DEPTH_READS = {"block_config.attn_res_block_size": DepthRead}
