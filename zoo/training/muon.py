"""Muon for the matrices of the layers, AdamW for everything else, in one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

# Coefficients of the quintic iteration, chosen for its slope at zero (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: torch.Tensor, steps: int = 5, eps: float = 1e-7) -> torch.Tensor:
    """The nearest matrix U Vᵀ with singular values near one, of G = U S Vᵀ `[..., out, in]`, in bfloat16.

        X ← G / |G|,   X ← a X + (b A + c A²) X,  A = X Xᵀ

    A Newton-Schulz iteration (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). Experts `[E, out, in]`
    are a batch of matrices.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    fused = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = fused(x, fused(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `use_muon` learn by Muon, the others by AdamW: see `parameter_groups(model, muon=True)`.

        Muon    M ← β M + (1 - β) G
                W ← W (1 - lr · decay) - lr · 0.2 · sqrt(max(out, in)) · orthogonalize(G + β (M - G))
        AdamW   Loshchilov & Hutter 2019, arXiv 1711.05101

    The factor gives an update the size of AdamW's, so that both can have one learning rate (Liu et al. 2025, arXiv
    2502.16982, §2.2).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"use_muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self.muon_step if group["use_muon"] else self.adamw_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def muon_step(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict, group: dict) -> None:
        """Nesterov's momentum, orthogonalised."""
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonalize(gradient.lerp(momentum, group["momentum"]))
        size = 0.2 * max(parameter.shape[-2:]) ** 0.5
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * size)

    def adamw_step(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict, group: dict) -> None:
        """Moments without their bias towards the zeros they start from."""
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        (first, second), step = group["betas"], state["step"].add_(1).item()
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (state["exp_avg_sq"].sqrt() / (1 - second**step) ** 0.5).add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first**step))
