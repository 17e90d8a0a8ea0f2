"""Gates on the output of attention, before the output projection (Qiu et al. 2025, arXiv 2505.06708)."""

import torch
import torch.nn.functional as F
from torch import nn

from configuration_zoo import ZooConfig


class QueryGate(nn.Module):
    """o · sigmoid(g), the gate g `[B, T, H, v]` projected beside the query (Qwen3-Next)."""

    def __init__(self, config: ZooConfig):
        super().__init__()

    def forward(self, attn_output: torch.Tensor, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return attn_output * torch.sigmoid(gate)


class ProjectedGate(nn.Module):
    """o · sigmoid(g_proj x), one gate per channel `[B, T, H, v]` (AFMoE)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        outputs = config.num_attention_heads * config.value_width
        self.g_proj = nn.Linear(config.hidden_size, outputs, bias=False)

    def forward(self, attn_output: torch.Tensor, hidden_states: torch.Tensor, gate: None) -> torch.Tensor:
        gate = self.g_proj(hidden_states)
        return attn_output * torch.sigmoid(gate).view(*attn_output.shape[:-1], -1)


class HeadwiseGate(nn.Module):
    """o · sigmoid(g_proj x), one gate per head `[B, T, H, 1]`; the sigmoid is taken in float32 (LFM 3, Ling 3)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.g_proj = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)

    def forward(self, attn_output: torch.Tensor, hidden_states: torch.Tensor, gate: None) -> torch.Tensor:
        gate = torch.sigmoid(self.g_proj(hidden_states).float()).to(attn_output.dtype)
        return attn_output * gate.unsqueeze(-1)


class SoftplusGate(nn.Module):
    """o · log(1 + exp(g_proj x)), one gate per channel `[B, T, H, v]` or per head `[B, T, H, 1]`, taken in float32
    (Laguna)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        of_head = 1 if config.attn_output_gate == "headwise_softplus" else config.value_width
        self.g_proj = nn.Linear(config.hidden_size, config.num_attention_heads * of_head, bias=False)

    def forward(self, attn_output: torch.Tensor, hidden_states: torch.Tensor, gate: None) -> torch.Tensor:
        gate = F.softplus(self.g_proj(hidden_states).float()).to(attn_output.dtype)
        return attn_output * gate.view(*attn_output.shape[:-1], -1)


OUTPUT_GATES = {
    "query": QueryGate,
    "elementwise": ProjectedGate,
    "headwise": HeadwiseGate,
    "elementwise_softplus": SoftplusGate,
    "headwise_softplus": SoftplusGate,
}


def make_output_gate(config: ZooConfig) -> nn.Module | None:
    """The gate a config names, None for no gate; its parameters are `self_attn.output_gate.g_proj`."""
    if config.attn_output_gate is None:
        return None
    return OUTPUT_GATES[config.attn_output_gate](config)


def query_gate_width(config: ZooConfig) -> int:
    """Channels of a head in `q_proj` behind those of its query: those of a gate that is projected there."""
    return config.value_width if config.attn_output_gate == "query" else 0
