"""Channel mixers: `[B, T, D]` → `[B, T, D]`, token by token."""

from statistics import NormalDist

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from configuration_zoo import ZooConfig

from .norms import make_sub_norm


class XIELU(nn.Module):
    """x > 0: a⁺x² + βx; else a⁻(eˣ - 1 - x) + βx, with learned a⁺, a⁻ per layer (Huang & Schlag 2024; Apertus).

    a⁺ = softplus(alpha_p), a⁻ = β + softplus(alpha_n); the exponent is held below `eps` < 0 so that it never vanishes.
    """

    def __init__(self, alpha_p: float = 0.8, alpha_n: float = 0.8, beta: float = 0.5, eps: float = -1e-6):
        super().__init__()
        self.start = {"alpha_p": alpha_p, "alpha_n": alpha_n - beta}
        self.constants = {"beta": beta, "eps": eps}
        for name, value in self.start.items():
            setattr(self, name, nn.Parameter(self.inverse_softplus(value)))
        for name, value in self.constants.items():
            self.register_buffer(name, torch.tensor(value))

    @staticmethod
    def inverse_softplus(value: float) -> torch.Tensor:
        """log(eˣ - 1)."""
        return torch.log(torch.expm1(torch.tensor(value))).unsqueeze(0)

    def initialize(self, std: float) -> None:
        for name, value in self.start.items():
            init.copy_(getattr(self, name), self.inverse_softplus(value))
        for name, value in self.constants.items():
            init.constant_(getattr(self, name), value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = nn.functional.softplus(self.alpha_p)
        below = self.beta + nn.functional.softplus(self.alpha_n)
        positive = above * x * x + self.beta * x
        negative = (torch.expm1(torch.min(x, self.eps)) - x) * below + self.beta * x
        return torch.where(x > 0, positive, negative)


class ScaledSiLU(nn.Module):
    """x · sigmoid(alpha x) (Ramachandran et al. 2017; gpt-oss)."""

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.alpha * x)


# Those that learn, and those transformers has no name for.
ACTIVATIONS = {"elu": nn.ELU, "xielu": XIELU}


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap · tanh(x / cap), in float32 at least."""
    return (cap * torch.tanh(x.to(torch.promote_types(x.dtype, torch.float32)) / cap)).to(x.dtype)


class SoftcappedSiLU(nn.Module):
    """cap · tanh(x / cap) · sigmoid(x): a SiLU whose linear factor is bounded (SiTU; Kimi K3, Inkling 2)."""

    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (softcap(wide, self.cap) * torch.sigmoid(wide)).to(x.dtype)


def activation_named(name: str) -> nn.Module:
    """The activation called `name`, a module of its own for each layer; raises KeyError for an unknown name."""
    own = ACTIVATIONS.get(name)
    return own() if own is not None else ACT2FN[name]


def make_activation(config: ZooConfig) -> nn.Module:
    """The activation `hidden_act` names."""
    return activation_named(config.hidden_act)


def gate_and_clamp(
    act_fn: nn.Module,
    gate: torch.Tensor,
    up: torch.Tensor,
    limit: float | None,
    offset: float | None = None,
    behind: bool | None = None,
    up_cap: float | None = None,
) -> torch.Tensor:
    """act(min(gate, limit)) · (clamp(up, ±limit) + offset), `[..., I]` each (gpt-oss, DeepSeek-V4); `behind` the
    activation it is min(act(gate), limit) (Step 3.5); up becomes up_cap · tanh(up / up_cap) (Kimi K3)."""
    if up_cap is not None:
        up = softcap(up, up_cap)
    if limit is not None:
        up = up.clamp(min=-limit, max=limit)
        gate = act_fn(gate).clamp(max=limit) if behind else act_fn(gate.clamp(max=limit))
    else:
        gate = act_fn(gate)
    return gate * (up if offset is None else up + offset)


def gaussian_top_k(x: torch.Tensor, quantile: float) -> torch.Tensor:
    """max(0, x - mean - deviation · quantile) over the channels `[..., I]`: of those that are distributed normally, the
    share above that quantile of the normal distribution stays (You et al. 2025, arXiv 2506.06644)."""
    deviation, mean = torch.std_mean(x, dim=-1, keepdim=True, correction=0)
    return nn.functional.relu(x - (mean + deviation * quantile))


class PlainMLP(nn.Module):
    """down(act(up x)), inner width `intermediate_size` (GPT-2, OPT, Nemotron)."""

    def __init__(self, config: ZooConfig, layer_idx: int | None = None, intermediate_size: int | None = None):
        super().__init__()
        inner = config.intermediate_size if intermediate_size is None else intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = make_activation(config)
        self.sub_norm = make_sub_norm(config, layer_idx, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.up_proj(x))
        return self.down_proj(inner if self.sub_norm is None else self.sub_norm(inner))


class GatedMLP(nn.Module):
    """down(act(gate x) · up x), gate and output scaled if asked (Dauphin et al. 2017; Shazeer 2020; Llama, Gemma)."""

    def __init__(self, config: ZooConfig, layer_idx: int | None = None, intermediate_size: int | None = None):
        super().__init__()
        inner = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = make_activation(config)
        self.multipliers = config.mup_multipliers["mlp"]
        self.sub_norm = make_sub_norm(config, layer_idx, inner)

    def unit(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """act(gate) · up, `[..., I]`."""
        return self.act_fn(gate) * up

    def combine(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`[..., I]` twice → `[..., D]`."""
        if self.multipliers is None:
            inner = self.unit(gate, up)
            return self.down_proj(inner if self.sub_norm is None else self.sub_norm(inner))
        of_gate, of_output = self.multipliers
        inner = self.unit(gate * of_gate, up)
        return self.down_proj(inner if self.sub_norm is None else self.sub_norm(inner)) * of_output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.combine(self.gate_proj(x), self.up_proj(x))


class ClampedMLP(GatedMLP):
    """down(act(min(gate x, limit)) · (clamp(up x, ±limit) + offset)), or the gate clamped behind its activation (Step
    3.5), which may be x · sigmoid(alpha x) (MiniMax-M3); the gate may lose most of its channels first (Gemma 3n),
    both may be bounded smoothly (Kimi K3)."""

    def __init__(self, config: ZooConfig, layer_idx: int | None = None, intermediate_size: int | None = None):
        super().__init__(config, layer_idx, intermediate_size)
        own = config.swiglu_config
        self.limit, self.offset = own["dense_limit"], own["dense_up_offset"]
        if own["dense_alpha"] is not None:
            self.act_fn = ScaledSiLU(own["dense_alpha"])
        if own["gate_softcap"] is not None:
            self.act_fn = SoftcappedSiLU(own["gate_softcap"])
        self.up_cap = own["up_softcap"]
        self.clamp_behind = own["clamp_behind_activation"]
        sparsity = own["activation_sparsity"]
        self.quantile = None if sparsity is None else NormalDist().inv_cdf(sparsity)

    def unit(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.quantile is not None:
            gate = gaussian_top_k(gate, self.quantile)
        return gate_and_clamp(self.act_fn, gate, up, self.limit, self.offset, self.clamp_behind, self.up_cap)


# What a gated dense MLP computes otherwise than act(gate) · up.
DENSE_UNIT = (
    "dense_limit", "dense_alpha", "dense_up_offset", "activation_sparsity", "gate_softcap", "up_softcap",
)  # fmt: skip


def make_dense_mlp(config: ZooConfig, layer_idx: int | None = None, intermediate_size: int | None = None) -> nn.Module:
    """A gated or plain MLP as the config says, of its own width if one is given."""
    if config.gated_mlp and any(config.swiglu_config[key] for key in DENSE_UNIT):
        return ClampedMLP(config, layer_idx, intermediate_size)
    if config.gated_mlp:
        return GatedMLP(config, layer_idx, intermediate_size)
    return PlainMLP(config, layer_idx, intermediate_size)
