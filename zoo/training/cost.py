"""What a training run will cost, before it does: parameters, FLOPs, memory, hours."""

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from configuration_zoo import ZooConfig

    from .recipe import Recipe


def estimate(config: "ZooConfig", recipe: "Recipe", steps: int, tokens_per_step: int, peak: float) -> dict[str, Any]:
    """The dry run: a dict with every number `zoo train --dry-run --json` prints.

    FLOPs and memory are counted as by `zoo inspect`: weights, gradients, AdamW's moments and what the forward of one
    device's rows leaves for the backward, all in float32. Hours are at the share UTILIZATION of `peak`."""
    from description_zoo.costs import UTILIZATION
    from description_zoo.measure import empty_model, measure
    from description_zoo.training_memory import training_memory

    model, length = empty_model(config), recipe.data.length
    report = measure(config, model)
    memory = training_memory(in_float32(config), length, recipe.training["per_device_train_batch_size"])
    ending = "_checkpointed" if recipe.training.get("gradient_checkpointing") else ""
    per_token = flops_per_token(model, length)
    tokens = steps * tokens_per_step
    return {
        "parameters": report["parameters"],
        "active_parameters": report["active_parameters"],
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "memory_bytes": memory[f"total{ending}"],
        "activation_bytes": memory[f"activations{ending}"],
        "peak_flops": peak,
        "utilization": UTILIZATION,
        "hours": per_token * tokens / (peak * UTILIZATION) / 3600 if peak else None,
    }


def in_float32(config: "ZooConfig") -> "ZooConfig":
    """The config of a model that holds its weights as `zoo train` does, whatever it is autocast to."""
    return type(config)(**{**config.to_diff_dict(), "dtype": "float32"})


def flops_per_token(model: "PreTrainedModel", length: int) -> int:
    """Of forward and backward on rows of `length` tokens; what checkpointing computes again is not counted, as in MFU
    (PaLM, Chowdhery et al. 2022, appendix B)."""
    from description_zoo.flops import flops

    return flops(model, length)["train"]


def machine_peak(given: float | None = None) -> float:
    """FLOPs a second of one device: as given, of a known GPU by its name, of a CPU what a matrix product reaches; 0
    where nothing is known."""
    if given is not None:
        return given
    if torch.cuda.is_available():
        from description_zoo.gpus import gpu_named

        gpu = gpu_named(torch.cuda.get_device_name())
        return gpu.flops if gpu is not None else 0.0
    size = 1024
    matrix = torch.randn(size, size)
    matrix @ matrix
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        matrix @ matrix
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def sentences(cost: dict[str, Any]) -> list[str]:
    """The same for a person."""
    from ..cli.tables import short, short_bytes

    return [
        f"parameters  {cost['parameters']:,}, of which {cost['active_parameters']:,} active per token",
        f"tokens      {short(cost['tokens'])} in {cost['steps']:,} steps of {cost['tokens_per_step']:,}, "
        f"{cost['tokens'] / max(cost['active_parameters'], 1):.1f} for each active parameter",
        f"FLOPs       {cost['flops_per_token']:.3g} per token, {cost['flops']:.3g} in all",
        f"memory      {short_bytes(cost['memory_bytes'])} per device, {short_bytes(cost['activation_bytes'])} of it "
        "activations",
        f"time        {in_words(cost)}",
    ]


def in_words(cost: dict[str, Any]) -> str:
    """Hours, minutes where they are few, and what they are reckoned from."""
    if cost["hours"] is None:
        return "unknown: give run.peak_flops"
    said = f"{cost['hours']:.1f} hours" if cost["hours"] >= 1 else f"{60 * cost['hours']:.1f} minutes"
    return f"{said} at {cost['utilization']:.0%} of {cost['peak_flops']:.3g} FLOPs a second"
