"""What a training run will cost, before it does: parameters, FLOPs, memory, hours."""

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig

    from .recipe import Recipe

# Dense FLOPs a second in bfloat16, as the makers print them.
GPU_PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
# Of a machine's peak that a first estimate of the hours reckons with.
USUAL_SHARE = 0.35


def estimate(config: "ZooConfig", recipe: "Recipe", steps: int, tokens_per_step: int, peak: float) -> dict[str, Any]:
    """The dry run: a dict with every number `zoo train --dry-run --json` prints."""
    from description_zoo.measure import measure

    report = measure(config)
    checkpoints = bool(recipe.training.get("gradient_checkpointing"))
    per_token = flops_per_token(config, report, recipe.data.length)
    on_device = recipe.training["per_device_train_batch_size"] * recipe.data.length
    activations = activation_bytes(config, on_device, checkpoints)
    tokens = steps * tokens_per_step
    return {
        "parameters": report["parameters"],
        "active_parameters": report["active_parameters"],
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "memory_bytes": 16 * report["parameters"] + activations,
        "activation_bytes": activations,
        "peak_flops": peak,
        "hours": per_token * tokens / (peak * USUAL_SHARE) / 3600 if peak else None,
    }


def flops_per_token(config: "ZooConfig", report: dict[str, Any], length: int) -> float:
    """6 N for the matrices a token passes, and 12 · heads · head size for each key that it sees in a layer of softmax
    attention, half of them on average (PaLM, Chowdhery et al. 2022, appendix B)."""
    tables = report["embedding_parameters"] - config.vocab_size * config.output_width
    matrices = report["active_parameters"] - (0 if config.tie_word_embeddings else max(tables, 0))
    scores = 0
    for layer in report["layers"]:
        words = layer["context"].split()
        if words and words[0] != "state":
            window = int(words[1]) if len(words) > 1 and words[1].isdigit() else length
            scores += 12 * config.num_attention_heads * (config.head_dim or 0) * min(window, length / 2)
    return 6 * matrices + scores


def activation_bytes(config: "ZooConfig", tokens: int, checkpoints: bool) -> int:
    """About what a forward in float32 leaves for the backward: in a layer 34 numbers for each channel of each token
    (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2, whose bytes are of half the size), or its input alone; and the
    logits, three times."""
    layers = config.num_hidden_layers * config.hidden_size * (4 if checkpoints else 68)
    return tokens * (layers + 12 * config.vocab_size)


def machine_peak(given: float | None = None) -> float:
    """FLOPs a second of one device: as given, of a known GPU by its name, of a CPU what a matrix product reaches; 0
    where nothing is known."""
    if given is not None:
        return given
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((peak for part, peak in GPU_PEAKS.items() if part in name), 0.0)
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
    return f"{said} at {USUAL_SHARE:.0%} of {cost['peak_flops']:.3g} FLOPs a second"
