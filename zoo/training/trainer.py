"""transformers' Trainer with zoo's groups of parameters, bits per byte, and what a step costs in the log."""

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from .balance import ExpertBalance
from .groups import parameter_groups
from .muon import MuonAdamW

if TYPE_CHECKING:
    from .recipe import OptimizerRecipe


class ZooTrainer(Trainer):
    """`optimizer_recipe` says how weights move; `held_out_bytes` how much text the evaluation rows hold; FLOPs of a
    token and of the machine a second, where known, give the log its rates."""

    def __init__(
        self,
        *args: Any,
        optimizer_recipe: "OptimizerRecipe",
        held_out_bytes: int = 0,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        **kwargs: Any,
    ):
        self.optimizer_recipe, self.held_out_bytes = optimizer_recipe, held_out_bytes
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.balance = ExpertBalance(optimizer_recipe.balance_rate)
        self.tokens, self.clock = 0, None
        super().__init__(*args, **kwargs)
        self.add_callback(self.balance)

    def create_optimizer(self, model: "torch.nn.Module | None" = None) -> torch.optim.Optimizer:
        """AdamW or Muon over `parameter_groups`."""
        if self.optimizer is None:
            recipe, args = self.optimizer_recipe, self.args
            uses_muon = recipe.name == "muon"
            groups = parameter_groups(
                self.model if model is None else model,
                args.learning_rate,
                args.weight_decay,
                base=recipe.mup_base_width,
                muon=uses_muon,
                muon_learning_rate=recipe.muon_learning_rate,
            )
            betas = (args.adam_beta1, args.adam_beta2)
            kind = MuonAdamW if uses_muon else torch.optim.AdamW
            self.optimizer = kind(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
        return self.optimizer

    def pause(self, seconds: float) -> None:
        """Time that was no training."""
        if self.clock is not None:
            self.clock += seconds

    def training_step(self, model: "torch.nn.Module", inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Counts the tokens on the way."""
        if self.clock is None:
            self.clock = time.perf_counter()
        self.tokens += inputs["input_ids"].numel() * self.args.world_size
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens a second, FLOPs a second, their share of the machine (MFU), and the experts' load."""
        if "loss" in logs and self.clock is not None:
            rate = self.tokens / max(time.perf_counter() - self.clock, 1e-9)
            # What follows a line of the log, an evaluation or a checkpoint, is no training.
            self.tokens, self.clock = 0, None
            logs["tokens_per_second"] = round(rate, 1)
            if self.flops_per_token:
                logs["flops_per_second"] = rate * self.flops_per_token
            if self.flops_per_token and self.peak_flops:
                logs["mfu"] = round(rate * self.flops_per_token / self.peak_flops / self.args.world_size, 4)
            logs |= self.balance.report()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """`eval_loss`, nats for each target token of all rows together, and `eval_bits_per_byte` of the text that they
        hold, which tokenizers can be compared by."""
        loader, started = self.get_eval_dataloader(eval_dataset), time.perf_counter()
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        total, count = torch.zeros(2, dtype=torch.float64).to(self.args.device)
        for batch in loader:
            targets = (batch["labels"][:, 1:] != -100).sum()
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(dict(batch)))
            total, count = total + loss.double() * targets, count + targets
        model.train(was_training)
        total, count = (self.accelerator.reduce(value).item() for value in (total, count))
        metrics = {f"{metric_key_prefix}_loss": total / max(count, 1)}
        if self.held_out_bytes:
            metrics[f"{metric_key_prefix}_bits_per_byte"] = total / math.log(2) / self.held_out_bytes
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 2)
        self.pause(time.perf_counter() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
