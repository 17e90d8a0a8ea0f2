"""Routed experts: each of transformers' implementations on the same layer, and what the default picks."""

import torch

from modeling_zoo.mlp_sparse import SparseMLP

from .measuring import alternate, difference
from .models import pair

MOST_BATCHED = 8
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


@torch.no_grad()
def experts(case: str, context: int, options) -> dict:
    """Median seconds of one sparse layer over `context` tokens by implementation, and by the one chosen for it."""
    model = pair(case, options.dtype, options.device, options.tiny, **options.changes(case))["zoo"]
    layer = next(module for module in model.modules() if isinstance(module, SparseMLP))
    states = torch.randn(1, context, model.config.hidden_size, device=options.device).to(options.dtype)
    default = model.config._experts_implementation

    def run(name):
        model.set_experts_implementation(name)
        return layer(states)

    # batched_mm copies the weights of every expert a token visits.
    names = [name for name in (*IMPLEMENTATIONS, default) if name != "batched_mm" or context <= MOST_BATCHED]
    sides = {name: lambda name=name: run(name) for name in dict.fromkeys(names)}
    times, outputs = alternate(sides, options.rounds, options.device)
    model.set_experts_implementation(default)
    error = max(difference(output, outputs["eager"]) for output in outputs.values())
    return {
        "kind": "experts",
        "case": case,
        "context": context,
        "default": default,
        "seconds": times,
        "ratio": min(times.values()) / times[default],
        "difference": error,
    }


def show(one: dict) -> str:
    """One line for people."""
    times = ", ".join(f"{name} {1e3 * taken:.2f} ms" for name, taken in one["seconds"].items())
    return (
        f"experts {one['case']}, {one['context']} tokens: {times}; default {one['default']}, fastest / default "
        f"{one['ratio']:.2f}, largest relative difference {one['difference']:.1e}"
    )
