"""The sparse channel mixer: a router, the experts it chooses among, and the experts every token visits."""

import torch
from torch import nn

from configuration_zoo import ZooConfig

from .mlp_dense import GatedMLP, PlainMLP, gate_and_clamp
from .mlp_experts import EXPERTS, make_expert_activation
from .mlp_routers import HashRouter, make_router
from .norms import make_norm
from .ops_experts import run_slots


class GatedSharedExperts(GatedMLP):
    """A gated MLP with the experts' clamp, alpha and offset."""

    def __init__(self, config: ZooConfig, layer_idx: int | None = None, intermediate_size: int | None = None):
        super().__init__(config, layer_idx, intermediate_size)
        self.act_fn = make_expert_activation(config)
        own = config.swiglu_config
        self.limit = config.swiglu_limit if own["shared_limit"] is None else own["shared_limit"] or None
        self.offset, self.clamp_behind = own["up_offset"], own["clamp_behind_activation"]
        self.up_cap = own["up_softcap"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        clamps = (self.limit, self.offset, self.clamp_behind, self.up_cap)
        return self.down_proj(gate_and_clamp(self.act_fn, gate, up, *clamps))


SHARED_EXPERTS = {True: GatedSharedExperts, False: PlainMLP}


def add(routed: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """routed + shared (DeepSeekMoE)."""
    return routed + shared


def average(routed: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """(routed + shared) / 2 (Command A+)."""
    return (routed + shared) / 2


# The sum of the last is normed behind it.
COMBINATIONS = {"sum": add, "average": average, "normed_sum": add}


class SparseMLP(nn.Module):
    """x `[B, T, D]` → Σ_k weight_k · expert_k(x) + shared(x), `[B, T, D]`, the k experts with the best router scores.

    router → top k → experts → combine (Shazeer et al. 2017; Dai et al. 2024, DeepSeekMoE). With `moe_latent_size` the
    routed experts work between two projections, in fewer channels (Nemotron 3); with "normed_sum" a norm stands behind
    the sum (A.X K1).
    """

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__()
        self.config = config
        self.num_experts = config.num_experts
        self.gate = make_router(config, layer_idx)
        self.hashes_tokens = False
        if config.router["num_hash_layers"]:
            self.hashes_tokens = isinstance(self.gate, HashRouter)
        self.experts = EXPERTS[config.gated_mlp, config.expert_bias](config, layer_idx)
        self.jitter_noise = config.router["jitter_noise"]
        self.weigh_input = config.router["weight_on_input"]
        self.zero_expert_type = config.zero_expert_type
        latent, size, bias = config.moe_latent_size, config.hidden_size, config.mlp_bias
        self.fc1_latent_proj = nn.Linear(size, latent, bias=bias) if latent else nn.Identity()
        self.fc2_latent_proj = nn.Linear(latent, size, bias=bias) if latent else nn.Identity()
        self.latent_norm = make_norm(config, latent) if config.router["latent_norm"] else None
        self.shared_experts = self.shared_expert_gate = None
        if config.n_shared_experts:
            width = config.shared_expert_intermediate_size
            self.shared_experts = SHARED_EXPERTS[config.gated_mlp](config, layer_idx, width)
            self.shared_expert_gate = nn.Linear(size, 1, bias=False) if config.shared_expert_gate else None
            self.combine = COMBINATIONS[config.shared_expert_combination_strategy]
        normed = config.shared_expert_combination_strategy == "normed_sum"
        self.output_norm = make_norm(config, size) if normed else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        router_input: torch.Tensor | None = None,
        token_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`router_input` `[B, T, D]` is what the router reads, where that is not `hidden_states`; `token_ids` `[B, T]`
        are for one that goes by them."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        jittered = self.jitter(tokens)
        router_input = jittered if router_input is None else router_input.reshape(tokens.shape)
        _, weights, experts = self.gate(router_input, token_ids)
        output = self.run_routed(jittered, weights, experts)
        if self.shared_experts is not None:
            output = self.combine(output, self.run_shared(tokens))
        if self.output_norm is not None:
            output = self.output_norm(output)
        return output.view(hidden_states.shape)

    def jitter(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens · (1 ± jitter_noise) at random, in training (Fedus et al. 2021, Switch Transformer)."""
        if not self.training or not self.jitter_noise:
            return tokens
        return tokens * torch.empty_like(tokens).uniform_(1.0 - self.jitter_noise, 1.0 + self.jitter_noise)

    def run_shared(self, tokens: torch.Tensor) -> torch.Tensor:
        """What every token visits, `[N, D]`, behind a gate of its own if there is one."""
        shared = self.shared_experts(tokens)
        return shared if self.shared_expert_gate is None else self.shared_expert_gate(tokens).sigmoid() * shared

    def run_routed(self, tokens: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Σ_k weight · expert(x): `[N, D]`, weights and ids `[N, k]` → `[N, D]`.

        An id from `num_experts` on is a zero expert's: it gives its input ("identity") or nothing ("zero").
        """
        inner = self.fc1_latent_proj(tokens)
        if self.zero_expert_type is None:
            run = self.run_weighted_inputs if self.weigh_input else self.experts
            return self.from_latent(run(inner, experts, weights))
        real = experts < self.num_experts
        output = self.from_latent(run_slots(self.experts, inner, experts, weights, real))
        if self.zero_expert_type == "identity":
            kept = weights.masked_fill(real, 0.0).sum(dim=-1, keepdim=True)
            output = output + (tokens * kept).to(output.dtype)
        return output

    def from_latent(self, routed: torch.Tensor) -> torch.Tensor:
        """What the routed experts give together, `[N, d]` → `[N, D]`, behind a norm of its own if there is one (Kimi
        K3)."""
        return self.fc2_latent_proj(routed if self.latent_norm is None else self.latent_norm(routed))

    def run_weighted_inputs(self, tokens: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ_k expert(weight · x): one row per slot, each with weight one (Llama 4)."""
        count, slots = experts.shape
        rows = (tokens.unsqueeze(1) * weights.unsqueeze(-1)).to(tokens.dtype).flatten(0, 1)
        results = self.experts(rows, experts.reshape(-1, 1), torch.ones_like(weights).reshape(-1, 1))
        return results.view(count, slots, -1).sum(dim=1)
