"""Keeping experts evenly used: the load-balancing loss, the router z-loss, and balancing by a bias without a loss.

    balance = E · Σ_e f_e · P_e      z = mean(logsumexp(logits)²)      loss += aux_coef · balance + z_coef · z

Router logits come as a tuple with one `[B · T, E]` per sparse layer; a mask `[B, T]` is true where a token counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from configuration_zoo import ZooConfig

from .mlp_routers import Router


def token_weights(router_logits: Sequence[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    """The mask as float32 `[B · T]`, all ones without one. Raises ValueError where the two differ in length."""
    rows = router_logits[0].shape[0]
    if mask is None:
        return torch.ones(rows, device=router_logits[0].device)
    if mask.numel() != rows:
        raise ValueError(
            f"The mask has {mask.numel()} tokens but the router saw {rows}: pass the mask of those tokens."
        )
    return mask.reshape(-1).to(router_logits[0].device, torch.float32)


def mask_of_targets(labels: torch.Tensor) -> torch.Tensor:
    """Labels `[B, T]` → `[B, T]`, true where the next token is one to predict."""
    return F.pad(labels, (0, 1), value=-100)[..., 1:] != -100


def load_balancing_loss(
    router_logits: Sequence[torch.Tensor], top_k: int | list[int], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """E · Σ_e f_e · P_e: f_e the tokens that choose e, P_e its mean probability, each over all layers' counted tokens.

    k when the experts are evenly used. As in transformers, the probabilities are a softmax of the logits and the choice
    their top k, whatever the router itself does; in float32 here. `top_k` is one number, or a list with one for each
    entry of `router_logits`. Layers with another number of experts are balanced apart; the mean over all layers counts.
    (Fedus et al. 2021, Switch Transformer, eqs. 4-6; Mixtral.)
    """
    weight, groups = token_weights(router_logits, mask), {}
    per_layer = top_k if isinstance(top_k, list) else [top_k] * len(router_logits)
    for logits, count in zip(router_logits, per_layer, strict=True):
        groups.setdefault(logits.shape[-1], []).append((logits, count))
    losses = [len(layers) * _balance(layers, num_experts, weight) for num_experts, layers in groups.items()]
    return sum(losses) / len(router_logits)


def _balance(layers, num_experts, weight):
    """The balance loss of layers (logits, k) that have the same number of experts."""
    chosen, probability = 0.0, 0.0
    for logits, top_k in layers:
        probabilities = logits.to(weight.device).float().softmax(dim=-1)
        experts = probabilities.topk(top_k, dim=-1).indices
        chosen = chosen + count_experts(experts, num_experts, weight)
        probability = probability + (probabilities * weight[:, None]).sum(dim=0)
    tokens = weight.sum().clamp(min=1) * len(layers)
    return num_experts * (chosen / tokens * (probability / tokens)).sum()


def count_experts(experts: torch.Tensor, num_experts: int, weight: torch.Tensor) -> torch.Tensor:
    """How many counted tokens chose each expert: ids `[N, k]`, weights `[N]` → `[E]`."""
    counts = torch.zeros(num_experts, device=experts.device)
    return counts.scatter_add(0, experts.reshape(-1), weight.repeat_interleave(experts.shape[-1]))


def router_z_loss(router_logits: Sequence[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over layers and counted tokens of logsumexp(logits)² (Zoph et al. 2022, ST-MoE, eq. 5)."""
    weight = token_weights(router_logits, mask)
    squares = [(logits.to(weight.device).float().logsumexp(dim=-1).square() * weight).sum() for logits in router_logits]
    return sum(squares) / (weight.sum().clamp(min=1) * len(router_logits))


class RouterLosses(NamedTuple):
    """What is added to the language model's loss, and its two parts before their coefficients; scalars."""

    total: torch.Tensor
    aux_loss: torch.Tensor
    z_loss: torch.Tensor


def router_losses(
    config: ZooConfig,
    router_logits: Sequence[torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    target_mask: torch.Tensor | None = None,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> RouterLosses:
    """aux_coef · balance + z_coef · z, as a mean over the batch's tokens.

    The balance loss counts tokens of `attention_mask`, the z-loss those of `target_mask` (`mask_of_targets`) if any.
    With `num_items_in_batch`, the targets of a whole accumulated batch, the sum is scaled by the share of them that is
    here: then the z-loss of micro-batches adds up to that of the batch exactly, the balance loss nearly.
    """
    sparse = [index for index, kind in enumerate(config.mlp_layer_types) if kind == "sparse"]
    top_k = [config.per_layer_config[index].num_experts_per_tok for index in sparse]
    aux_loss = load_balancing_loss(router_logits, top_k if len(set(top_k)) > 1 else top_k[0], attention_mask)
    z_loss = router_z_loss(router_logits, attention_mask if target_mask is None else target_mask)
    total = config.router_aux_loss_coef * aux_loss + config.router_z_loss_coef * z_loss
    if num_items_in_batch is not None:
        counted = token_weights(router_logits, attention_mask if target_mask is None else target_mask).sum()
        total = total * (counted / num_items_in_batch)
    return RouterLosses(total, aux_loss, z_loss)


def updated_correction_bias(bias: torch.Tensor, load: torch.Tensor, rate: float) -> torch.Tensor:
    """bias + rate · sign(mean(load) - load), `[E]`: overused experts down, others up (Wang et al. 2024, Alg. 1)."""
    load = load.to(bias.device, torch.float32)
    return bias + rate * torch.sign(load.mean() - load)


class CorrectionBiasBalancer:
    """Balances experts without a loss: counts what each router chooses in training, and `step` moves its bias.

    Call `step` once per optimizer step. `rate` is the paper's u, 1e-3 there and in DeepSeek-V3. Tokens that a 2-D
    `attention_mask` of the model's call marks as padding are not counted; counts are summed over the processes of the
    default group. Raises ValueError for a model without a router that has such a bias.
    """

    def __init__(self, model: torch.nn.Module, rate: float = 1e-3):
        routers = [module for module in model.modules() if isinstance(module, Router)]
        self.routers = [router for router in routers if getattr(router, "e_score_correction_bias", None) is not None]
        if not self.routers:
            raise ValueError("No router of this model has a correction bias: set use_score_correction_bias=True.")
        self.rate, self.mask = rate, None
        self.loads = [torch.zeros_like(router.e_score_correction_bias) for router in self.routers]
        self.hooks = [model.register_forward_pre_hook(self._keep_mask, with_kwargs=True)]
        self.hooks += [
            router.register_forward_hook(self._count_hook(index)) for index, router in enumerate(self.routers)
        ]

    def _keep_mask(self, model, args, kwargs):
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _count_hook(self, index):
        def count(router, args, output):
            if not router.training:
                return
            logits, _, experts = output
            fits = self.mask is not None and self.mask.numel() == logits.shape[0]
            weight = token_weights([logits], self.mask if fits else None)
            load = count_experts(experts, logits.shape[-1], weight)
            self.loads[index] = self.loads[index].to(load.device) + load.detach()

        return count

    @torch.no_grad()
    def step(self) -> None:
        """Moves every bias by ± rate and resets the counts; a router that saw no token keeps its bias."""
        for index, router in enumerate(self.routers):
            load = self.loads[index]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(load)
            bias = router.e_score_correction_bias
            bias.copy_(updated_correction_bias(bias, load, self.rate))
            self.loads[index] = torch.zeros_like(load)

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for hook in self.hooks:
            hook.remove()
