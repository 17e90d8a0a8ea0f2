"""What came of a sweep: one table, one plot."""

import json
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from modeling_zoo.export import replace_text

from .plots import Curves, curves_of, draw

if TYPE_CHECKING:
    from .variants import Sweep, Variant

TABLE, NUMBERS, PICTURE = "sweep.md", "sweep.json", "sweep.png"
COLUMNS = (
    "variant", "parameters", "active", "FLOPs/token", "steps", "cache/token", "state", "loss", "bits/byte", "tokens/s",
    "runs",
)  # fmt: skip


def report(sweep: "Sweep") -> dict[str, Any]:
    """{"variants": [a row for each], "failed": {run or variant: sentence}} of what is finished so far."""
    rows, failed = [], {one.name: one.error for one in sweep.variants if one.error is not None}
    for variant in sweep.variants:
        runs = sweep.runs_of(variant)
        failed |= {str(run): why for run in runs if (why := run.failure()) is not None}
        results = [log["result"] for run in runs if (log := run.finished()) is not None]
        rows.append({"variant": variant.name, **variant.cost, **summary(results), "runs": len(results)})
    return {"output": str(sweep.output), "seeds": sweep.said.seeds, "variants": rows, "failed": failed}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the standard deviation of the loss where there are two or more."""
    if not results:
        return {}
    named = ("loss", "bits_per_byte", "tokens_per_second")
    found = {name: [one[name] for one in results if one[name] is not None] for name in named}
    means = {name: mean(values) for name, values in found.items() if values}
    return means | ({"loss_deviation": stdev(found["loss"])} if len(results) > 1 else {})


def write_report(sweep: "Sweep") -> dict[str, Any]:
    """The same, in the three files of the output folder."""
    found = report(sweep)
    replace_text(sweep.output / NUMBERS, json.dumps(found, indent=1))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in found["variants"])]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += "".join(f"\n\n{name}: {why}" for name, why in found["failed"].items())
    replace_text(sweep.output / TABLE, text + "\n")
    by_cost = sweep.said.match == "flops"
    curves = {one.name: mean_curves(one, sweep, by_cost) for one in sweep.variants if one.error is None}
    if any(one["held_out"] for one in curves.values()):
        draw(curves, sweep.output / PICTURE, across="FLOPs" if by_cost else "step")
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table in words; an empty cell for what is not known."""
    from description_zoo.numbers import short, short_bytes

    def said(name, form):
        return form(row[name]) if row.get(name) is not None else ""

    loss = said("loss", "{:.4f}".format) + said("loss_deviation", " ± {:.4f}".format)
    return [
        row["variant"], said("parameters", "{:,}".format), said("active_parameters", "{:,}".format),
        said("flops_per_token", short), said("steps", "{:,}".format), said("cache_bytes_per_token", short_bytes),
        said("state_bytes", short_bytes), loss, said("bits_per_byte", "{:.4f}".format),
        said("tokens_per_second", "{:,.0f}".format), str(row["runs"]),
    ]  # fmt: skip


def mean_curves(variant: "Variant", sweep: "Sweep", by_cost: bool) -> Curves:
    """The losses of a variant over its finished seeds, at the steps that all of them have."""
    found = [curves_of(log["history"]) for run in sweep.runs_of(variant) if (log := run.finished()) is not None]
    factor = variant.cost["flops"] / variant.cost["steps"] if by_cost else 1
    means = {}
    for kind in ("train", "held_out"):
        each = [dict(curves[kind]) for curves in found]
        steps = sorted(set.intersection(*map(set, each))) if each else []
        means[kind] = [(step * factor, mean(one[step] for one in each)) for step in steps]
    return means
