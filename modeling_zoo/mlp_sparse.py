"""The sparse channel mixer: a router, the experts it chooses among, and the experts every token visits."""

import torch
from torch import nn

from .mlp_dense import GatedMLP, PlainMLP
from .mlp_experts import EXPERTS, gate_and_clamp, make_expert_activation
from .mlp_routers import ROUTERS
from .ops_dispatch import has_values


class GatedSharedExperts(GatedMLP):
    """A gated MLP with the experts' clamp, alpha and offset."""

    def __init__(self, config, layer_idx=None, intermediate_size=None):
        super().__init__(config, layer_idx, intermediate_size)
        self.act_fn = make_expert_activation(config)
        self.limit, self.offset = config.swiglu_limit, config.swiglu_up_offset

    def forward(self, x):
        return self.down_proj(gate_and_clamp(self.act_fn, self.gate_proj(x), self.up_proj(x), self.limit, self.offset))


SHARED_EXPERTS = {True: GatedSharedExperts, False: PlainMLP}


def add(routed, shared):
    """routed + shared (DeepSeekMoE)."""
    return routed + shared


def average(routed, shared):
    """(routed + shared) / 2 (Command A+)."""
    return (routed + shared) / 2


COMBINATIONS = {"sum": add, "average": average}


class SparseMLP(nn.Module):
    """x `[B, T, D]` → Σ_k weight · expert(x) + shared(x), `[B, T, D]` (Shazeer et al. 2017; Dai et al. 2024).

    `router_input` is what the router reads, where that is not x. Raises ValueError for an experts implementation that
    would drop the experts' clamp, alpha or offset.
    """

    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.config = config
        self.num_experts = config.num_experts
        self.gate = ROUTERS[config.scoring_func](config, layer_idx)
        self.experts = EXPERTS[config.gated_mlp, config.expert_bias](config, layer_idx)
        self.jitter_noise = config.router_jitter_noise
        self.weigh_input = config.apply_router_weight_on_input
        self.zero_expert_type = config.zero_expert_type
        latent, size, bias = config.moe_latent_size, config.hidden_size, config.mlp_bias
        self.fc1_latent_proj = nn.Linear(size, latent, bias=bias) if latent else nn.Identity()
        self.fc2_latent_proj = nn.Linear(latent, size, bias=bias) if latent else nn.Identity()
        self.shared_experts = self.shared_expert_gate = None
        if config.n_shared_experts:
            width = config.shared_expert_intermediate_size
            self.shared_experts = SHARED_EXPERTS[config.gated_mlp](config, layer_idx, width)
            self.shared_expert_gate = nn.Linear(size, 1, bias=False) if config.shared_expert_gate else None
            self.combine = COMBINATIONS[config.shared_expert_combination_strategy]

    def forward(self, hidden_states, router_input=None):
        self._refuse_unfit_implementation()
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        jittered = self._jitter(tokens)
        router_input = jittered if router_input is None else router_input.reshape(tokens.shape)
        _, weights, experts = self.gate(router_input)
        output = self._route(jittered, weights, experts)
        if self.shared_experts is not None:
            output = self.combine(output, self._share(tokens))
        return output.view(hidden_states.shape)

    def _refuse_unfit_implementation(self):
        config = self.config
        if config._experts_implementation == "sonicmoe" and not (
            config.swiglu_limit is config.swiglu_alpha is config.swiglu_up_offset is None
        ):
            raise ValueError(
                "experts_implementation='sonicmoe' ignores swiglu_limit, swiglu_alpha and swiglu_up_offset, which this "
                "config sets: use 'grouped_mm', 'batched_mm' or 'eager'."
            )

    def _jitter(self, tokens):
        if not self.training or not self.jitter_noise:
            return tokens
        return tokens * torch.empty_like(tokens).uniform_(1.0 - self.jitter_noise, 1.0 + self.jitter_noise)

    def _share(self, tokens):
        shared = self.shared_experts(tokens)
        return shared if self.shared_expert_gate is None else self.shared_expert_gate(tokens).sigmoid() * shared

    def _route(self, tokens, weights, experts):
        """`[N, D]`, weights and ids `[N, k]` → `[N, D]`."""
        inner = self.fc1_latent_proj(tokens)
        if self.zero_expert_type is None:
            run = self._run_weighed if self.weigh_input else self.experts
            return self.fc2_latent_proj(run(inner, experts, weights))
        real = experts < self.num_experts
        output = self.fc2_latent_proj(self._run_real(inner, experts, weights, real))
        if self.zero_expert_type == "identity":
            kept = weights.masked_fill(real, 0.0).sum(dim=-1, keepdim=True)
            output = output + (tokens * kept).to(output.dtype)
        return output

    def _run_weighed(self, tokens, experts, weights):
        """Σ_k expert(weight · x): one row per slot, each with weight one."""
        count, slots = experts.shape
        rows = (tokens.unsqueeze(1) * weights.unsqueeze(-1)).to(tokens.dtype).flatten(0, 1)
        results = self.experts(rows, experts.reshape(-1, 1), torch.ones_like(weights).reshape(-1, 1))
        return results.view(count, slots, -1).sum(dim=1)

    def _run_real(self, tokens, experts, weights, real):
        """The slots that `real` `[N, k]` marks; the others cost nothing, except where shapes are fixed: in a graph."""
        if not has_values(experts):
            return self.experts(tokens, experts.clamp(max=self.num_experts - 1), weights.masked_fill(~real, 0.0))
        token, slot = real.nonzero(as_tuple=True)
        results = self.experts(tokens[token], experts[token, slot, None], weights[token, slot, None])
        return torch.zeros_like(tokens).index_add(0, token, results.to(tokens.dtype))
