"""How fast a recurrence forgets: log decays (g <= 0) from what a mixer projects, per head or per channel of its keys.

Each function takes the projection `[B, T, H]` or `[B, T, H, K]` (float32), the mixer's `A_log` and `dt_bias` in a shape
that broadcasts to it, and the layer's settings.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F


def softplus_decay(
    projected: torch.Tensor, rate: torch.Tensor, bias: torch.Tensor, settings: SimpleNamespace
) -> torch.Tensor:
    """g = -e**A_log · softplus(a + dt_bias) (Mamba-2, Gated DeltaNet, Kimi delta attention)."""
    return -rate.exp() * F.softplus(projected + bias)


def bounded_sigmoid_decay(
    projected: torch.Tensor, rate: torch.Tensor, bias: torch.Tensor, settings: SimpleNamespace
) -> torch.Tensor:
    """g = lower_bound · sigmoid(e**A_log · (a + dt_bias)): at most e**lower_bound per token (GLM-5, Ling 3)."""
    return settings.lower_bound * torch.sigmoid(rate.exp() * (projected + bias))


def log_sigmoid_decay(
    projected: torch.Tensor, rate: None, bias: torch.Tensor, settings: SimpleNamespace
) -> torch.Tensor:
    """g = log sigmoid(a + dt_bias) / normalizer (Yang et al. 2023, gated linear attention, §4.4)."""
    return F.logsigmoid(projected + bias) / settings.decay_normalizer


DECAYS = {
    "softplus": softplus_decay,
    "bounded_sigmoid": bounded_sigmoid_decay,
    "log_sigmoid": log_sigmoid_decay,
}


def constant_slopes(heads: int, layer_idx: int, num_layers: int) -> list[float]:
    """H rates 2**(-8 (h + 1) / H), slower in later layers (Qin et al. 2024, lightning attention; ALiBi's slopes)."""
    depth = 1 - layer_idx / (num_layers - 1 + 1e-5) + 1e-5
    return [2 ** (-8 * (head + 1) / heads) * depth for head in range(heads)]
