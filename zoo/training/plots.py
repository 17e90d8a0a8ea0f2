"""Curves of loss, of one run or of several."""

from pathlib import Path
from typing import Any


def curves_of(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """A Trainer's log → {"train", "held_out"}: (step, loss)."""
    return {
        "train": [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        "held_out": [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
    }


Curves = dict[str, list[tuple[int, float]]]


def draw(
    runs: dict[str, Curves], path: Path, title: str = "", unit: str = "nats per token", across: str = "step"
) -> bool:
    """The loss of each run against the step, or what else its curves go `across`, held-out text bold, batches thin;
    False where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for index, (name, curves) in enumerate(runs.items()):
        color = f"C{index % 10}"
        if curves["train"]:
            axes.plot(*zip(*curves["train"], strict=True), color=color, linewidth=0.6, alpha=0.5)
        if curves["held_out"]:
            last = curves["held_out"][-1][1]
            label = f"{name}: {last:.3f} held out"
            axes.plot(*zip(*curves["held_out"], strict=True), color=color, label=label, marker=".", markersize=3)
    axes.set(xlabel=across, ylabel=f"loss ({unit})", title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
