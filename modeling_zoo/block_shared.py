"""Transformer blocks that layers far apart share, and what each of those layers adds to their projections."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .mlp_dense import GatedMLP
from .norms import make_norm
from .ops_attention_bands import AttentionMask
from .ops_own_part import own_part


def make_adapter(inputs: int, rank: int | None, outputs: int) -> nn.Sequential | None:
    """A linear map through `rank` channels (LoRA, Hu et al. 2021), None for no rank."""
    if rank is None:
        return None
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))


def adapted(matrix: nn.Module, adapter: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    """The shared projection of x and, where there is one, the layer's own: of the outputs that are on this rank."""
    projected = matrix(x)
    if adapter is None:
        return projected
    added = adapter(x)
    return projected + (added if added.shape == projected.shape else own_part(added, matrix, -1))


class Adapters(nn.Module):
    """What one layer adds to the block it shares: to queries, keys and values, and to the MLP's first projection."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        rank, width = config.shared_attention_adapter_rank, 2 * config.hidden_size
        keys, values = config.num_key_value_heads * config.head_dim, config.num_key_value_heads * config.value_width
        self.q_proj = make_adapter(width, rank, config.num_attention_heads * config.head_dim)
        self.k_proj = make_adapter(width, rank, keys)
        self.v_proj = make_adapter(width, rank, values)
        self.gate_up_proj = make_adapter(
            config.hidden_size, config.shared_mlp_adapter_rank, 2 * config.intermediate_size
        )


class SharedAttention(GroupedQueryAttention):
    """Grouped-query attention that reads `[B, T, 2D]`, gives `[B, T, D]` and caches for the layer it is called from."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width, bias = 2 * config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.q_proj.out_features, bias=bias)

    def build_keys(self, config: ZooConfig, layer_idx: int) -> None:
        super().build_keys(config, layer_idx)
        width, bias = 2 * config.hidden_size, config.attention_bias
        self.k_proj = nn.Linear(width, self.k_proj.out_features, bias=bias)
        self.v_proj = nn.Linear(width, self.v_proj.out_features, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        adapters: Adapters,
        layer_idx: int,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        names = ("q_proj", "k_proj", "v_proj")
        query, key, value = (adapted(getattr(self, name), getattr(adapters, name), hidden_states) for name in names)
        heads = (*hidden_states.shape[:-1], -1)
        query = self.norm_and_rotate(query.view(*heads, self.head_dim), self.q_norm, position_embeddings)
        key = self.norm_and_rotate(key.view(*heads, self.head_dim), self.k_norm, position_embeddings)
        value = value.view(*heads, self.value_width)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        if self.key_copies > 1:
            key, value = (own_part(x.repeat_interleave(self.key_copies, 1), self.q_proj, 1) for x in (key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, layer_idx)
        attn_output, weights = self.attend(query, key, value, attention_mask, position_ids=position_ids, **kwargs)
        return self.o_proj(attn_output.flatten(-2).contiguous()), weights


class SharedMLP(GatedMLP):
    """down(act(gate x) · up x) with an adapter `[B, T, D]` → `[B, T, 2I]` on gate and up."""

    def forward(self, x: torch.Tensor, adapter: nn.Module | None = None) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if adapter is not None:
            of_gate, of_up = adapter(x).chunk(2, dim=-1)
            gate, up = gate + own_part(of_gate, self.gate_proj, -1), up + own_part(of_up, self.up_proj, -1)
        return self.combine(gate, up)


class SharedBlock(nn.Module):
    """mlp(norm(attention(norm([x; x₀])))), x the residual stream and x₀ the embeddings it started from, `[B, T, D]`
    each.

    No residual: what comes out, `[B, T, D]`, is the calling layer's to add. (Glorioso et al. 2024, Zamba,
    arXiv 2405.16712, and Zamba2, arXiv 2411.15242.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__()
        self.attn_norm = make_norm(config, 2 * config.hidden_size, cast_input=True)
        self.self_attn = SharedAttention(config, layer_idx)
        self.mlp_norm = make_norm(config, config.hidden_size)
        self.mlp = SharedMLP(config, layer_idx)

    def forward(
        self, hidden_states: torch.Tensor, start: torch.Tensor, adapters: Adapters, **context: Any
    ) -> torch.Tensor:
        states = self.attn_norm(torch.cat([hidden_states, start], dim=-1))
        states, _ = self.self_attn(states, adapters=adapters, **context)
        return self.mlp(self.mlp_norm(states), adapters.gate_up_proj)


class SharedBlocks(nn.ModuleList):
    """`num_mem_blocks` blocks that take turns over the layers with block_type "shared_block"."""

    def __init__(self, config: ZooConfig):
        users = config.shared_block_layers
        owners = users[: config.num_mem_blocks]
        super().__init__([SharedBlock(config.per_layer_config[index], index) for index in owners])
        self.turn = {index: turn % config.num_mem_blocks for turn, index in enumerate(users)}

    def context(self, layer_idx: int, start: torch.Tensor) -> dict[str, Any]:
        """What layer `layer_idx` is given beside the rest: its block, and the embeddings that the residual stream
        started from."""
        if layer_idx not in self.turn:
            return {}
        return {"shared_block": self[self.turn[layer_idx]], "start": start}


SHARED_BLOCKS = {"num_mem_blocks": SharedBlocks}
