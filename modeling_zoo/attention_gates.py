"""Gates on the output of attention, before the output projection (Qiu et al. 2025)."""

import torch
from torch import nn


class NoGate(nn.Module):
    """Attention output unchanged."""

    query_width = 1

    def __init__(self, config, layer_idx):
        super().__init__()

    def forward(self, attn_output, hidden_states, gate):
        return attn_output


class QueryGate(NoGate):
    """o · sigmoid(g), the gate g `[B, T, H, d]` projected beside the query (Qwen3-Next)."""

    query_width = 2

    def forward(self, attn_output, hidden_states, gate):
        return attn_output * torch.sigmoid(gate)


class ProjectedGate(NoGate):
    """o · sigmoid(g_proj x), one gate per channel `[B, T, H, d]` (AFMoE)."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.g_proj = nn.Linear(config.hidden_size, self.outputs(config), bias=False)

    @staticmethod
    def outputs(config):
        return config.num_attention_heads * config.value_width

    def forward(self, attn_output, hidden_states, gate):
        gate = self.g_proj(hidden_states)
        return attn_output * torch.sigmoid(gate).view(*attn_output.shape[:-1], -1)


class HeadwiseGate(ProjectedGate):
    """o · sigmoid(g_proj x), one gate per head `[B, T, H, 1]`; the sigmoid is taken in float32 (LFM 3, Ling 3)."""

    @staticmethod
    def outputs(config):
        return config.num_attention_heads

    def forward(self, attn_output, hidden_states, gate):
        gate = torch.sigmoid(self.g_proj(hidden_states).float()).to(attn_output.dtype)
        return attn_output * gate.unsqueeze(-1)


OUTPUT_GATES = {
    (None, None): NoGate,
    ("elementwise", "q_proj"): QueryGate,
    ("elementwise", "g_proj"): ProjectedGate,
    ("headwise", "g_proj"): HeadwiseGate,
}


def make_output_gate(config, layer_idx):
    """The gate a config names; its parameters sit under `self_attn.output_gate`."""
    return OUTPUT_GATES[config.attn_output_gate, config.attn_gate_source](config, layer_idx)
