"""Experts while they learn: their load in the log, and balance by a bias where the routers have one."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from modeling_zoo.mlp_routers import Router
from modeling_zoo.train_router_loss import CorrectionBiasBalancer, count_experts

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.get_logger(__name__)


class ExpertLoad:
    """Counts what each router of `model` chooses in training: load `[E]`, and the entropy of its softmax in nats."""

    def __init__(self, model: "nn.Module"):
        self.routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self.hooks = [router.register_forward_hook(self._hook(name)) for name, router in self.routers.items()]
        self.reset()

    def reset(self) -> None:
        self.loads: dict[str, torch.Tensor] = {}
        self.entropies: dict[str, list[torch.Tensor]] = {}

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for hook in self.hooks:
            hook.remove()

    def _hook(self, name):
        @torch.no_grad()
        def count(router, args, output):
            if router.training:
                logits, _, experts = output
                load = count_experts(experts, logits.shape[-1], torch.ones(len(experts), device=logits.device))
                self.loads[name] = self.loads.get(name, 0) + load
                log_probability = logits.float().log_softmax(dim=-1)
                entropy = -(log_probability.exp() * log_probability).sum(dim=-1).mean()
                self.entropies.setdefault(name, []).append(entropy)

        return count

    def report(self) -> dict[str, float]:
        """Since the last reset, over all processes: `experts/busiest`, the largest share of a layer's tokens times its
        number of experts (1: all alike), `experts/dead`, how many no token chose, `experts/entropy`, the mean over
        layers in nats; the first also by layer. {} before any token."""
        if not self.loads:
            return {}
        loads = {name: summed(load) for name, load in self.loads.items()}
        busiest = {name: (load.max() / load.mean()).item() for name, load in loads.items()}
        entropy = sum(torch.stack(values).mean().item() for values in self.entropies.values()) / len(self.entropies)
        dead = sum(int((load == 0).sum()) for load in loads.values())
        found = {"experts/busiest": max(busiest.values()), "experts/dead": dead, "experts/entropy": entropy}
        numbers = {name: [part for part in name.split(".") if part.isdigit()] for name in busiest}
        return found | {f"experts/busiest_{'.'.join(numbers[name])}": value for name, value in busiest.items()}


def summed(load: torch.Tensor) -> torch.Tensor:
    """Over the processes of the default group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(load)
    return load


class ExpertBalance(TrainerCallback):
    """Moves the correction bias of every router after each step (loss-free balancing, Wang et al. 2024, arXiv
    2408.15664; DeepSeek-V3) and puts the experts' load into the log.

        Trainer(..., callbacks=[ExpertBalance(rate=1e-3)])

    Of a model without such a bias it only says the load; of one without experts nothing. It warns where a model has
    experts and nothing that balances them, or an indexer that no loss teaches.
    """

    def __init__(self, rate: float = 1e-3):
        self.rate = rate
        self.load: ExpertLoad | None = None
        self.balancer: CorrectionBiasBalancer | None = None

    def on_train_begin(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        model: "nn.Module | None" = None,
        **kwargs: Any,
    ) -> None:
        self.on_train_end()
        for sentence in unbalanced(model.config):
            logger.warning(sentence)
        self.load = ExpertLoad(model)
        if any(getattr(router, "e_score_correction_bias", None) is not None for router in self.load.routers.values()):
            self.balancer = CorrectionBiasBalancer(model, self.rate)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.balancer is not None:
            self.balancer.step()

    def report(self) -> dict[str, float]:
        """The load since the last report."""
        found = {} if self.load is None else self.load.report()
        if self.load is not None:
            self.load.reset()
        return found

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # What a plain Trainer logs; that of zoo has put it in before any callback sees it.
        if logs is not None and "loss" in logs and "experts/busiest" not in logs:
            found = self.report()
            logs |= found
            state.log_history[-1] |= found

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        for held in (self.load, self.balancer):
            if held is not None:
                held.remove()
        self.load = self.balancer = None


def unbalanced(config: Any) -> list[str]:
    """Sentences about what a config lets go wrong in training without a word; [] for one that is complete."""
    said = []
    sparse = "sparse" in (getattr(config, "mlp_layer_types", None) or ())
    if sparse and not (config.router_aux_loss_coef or config.use_score_correction_bias):
        said.append(
            f"num_experts={config.num_experts}: no loss and no bias keeps the experts in balance. Set "
            "router_aux_loss_coef (0.01 is usual), or use_score_correction_bias=True."
        )
    indexed = "indexed_attention" in (getattr(config, "layer_types", None) or ())
    if indexed and not config.indexer_loss_coef:
        said.append(
            "indexer_loss_coef=0: nothing teaches the indexer, whose choice of keys stays as it is. Set "
            "indexer_loss_coef (1.0 in DeepSeek-V3.2), and indexer.warmup=True while it is new."
        )
    return said
