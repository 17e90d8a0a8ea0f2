"""What a concept costs beside the model without it, and how both learn: the tables of a guide."""

import json
import math
from pathlib import Path

from configuration_zoo import ZooConfig
from description_zoo.flops import flops
from description_zoo.measure import cache_totals, empty_model, measure
from description_zoo.numbers import short, short_bytes

from .concept import PLAIN, SMALL, Concept
from .plots import curves

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
CONTEXTS = {"1K": 1024, "8K": 8192, "128K": 131072}
ABLATION = "`python benchmarks/ablations.py --only {}`"


def cost_table(concept: Concept) -> str:
    """Parameters, operations and cache of the concept's model and of its twin, in bfloat16, one sequence."""
    columns = [column(fields) for fields in concept.sizes()]
    names = [name for name in columns[0] if any(found[name] != "0 B" for found in columns)]
    rows = [(name, *(found[name] for found in columns)) for name in names]
    return table(("", *concept.names), [row for row in rows if row[0] != "active" or row[1:] != rows[0][1:]])


def decodes_as_plain(concept: Concept) -> bool:
    """Whether a token of context costs what it costs with the plain model: bytes of cache, operations of decoding."""
    grown = []
    for fields in (concept.sizes()[0], PLAIN):
        config = ZooConfig(**fields)
        model = empty_model(config)
        report, (near, far) = measure(config, model), (flops(model, length)["decode"] for length in (8192, 131072))
        grown.append((report["cache_bytes_per_token"], report["window_bytes"], report["state_bytes"], far - near))
    return grown[0] == grown[1]


def column(fields: dict) -> dict[str, str]:
    """A model's numbers in words."""
    config = ZooConfig(**fields)
    model = empty_model(config)
    report = measure(config, model)
    counts = {name: flops(model, length) for name, length in CONTEXTS.items()}
    found = {"parameters": short(report["parameters"]), "active": short(report["active_parameters"])}
    for name in CONTEXTS:
        found[f"operations of a decoded token at {name}"] = short(counts[name]["decode"])
    found["operations of a token of training at 8K"] = short(counts["8K"]["train"])
    for name, length in CONTEXTS.items():
        found[f"cache at {name}"] = short_bytes(cache_totals(report, length)["bytes"])
    return found


def shape() -> str:
    """The plain model in words."""
    layers, heads = PLAIN["num_hidden_layers"], PLAIN["num_attention_heads"]
    return f"{layers} layers of width {PLAIN['hidden_size']:,} with {heads} heads"


def decode_curve(case: str) -> str:
    """Milliseconds of a decoded token against the context, and where they were measured."""
    measured = json.loads((RESULTS / "decode.json").read_text(encoding="utf-8"))[case]
    rows = []
    for context in (256, 1024, 4096, 16384, 65536):
        if found := measured.get(str(context)):
            times = [milliseconds(found["seconds"][side]) for side in ("transformers", "zoo")]
            rows.append((f"{context:,}", *times))
    return table(("tokens of context", "transformers, ms", "zoo, ms"), rows)


def decode_picture(case: str) -> str:
    """The same as curves, both axes logarithmic."""
    measured = json.loads((RESULTS / "decode.json").read_text(encoding="utf-8"))[case]
    series = []
    for side in ("transformers", "zoo"):
        points = sorted((int(context), found["seconds"][side] * 1000) for context, found in measured.items())
        series.append((side, [(math.log2(context), math.log10(time)) for context, time in points]))
    times = [time for _, line in series for _, time in line]
    powers = range(math.ceil(min(times)), math.floor(max(times)) + 1)
    ticks = tuple((float(power), f"{10**power:,} ms") for power in powers)
    return curves("time of a decoded token", series, "tokens of context, as a power of two", "", ticks)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}" if seconds >= 0.1 else f"{seconds * 1000:.3g}"


def ablation(concept: Concept) -> str:
    """Losses of the small models on held-out text, by seed; a sentence where they were not trained."""
    from benchmarks.ablations import LENGTH, ROWS, STEPS, key_of, models_of, results

    found, rows = results(), []
    for name, fields in zip(concept.names, models_of(concept), strict=True):
        losses = found.get(key_of(fields), {}).get("losses", {})
        if not losses:
            return ""
        values = list(losses.values())
        spread = max(values) - min(values)
        rows.append(
            (name, f"{sum(values) / len(values):.3f}", f"{spread:.3f}", ", ".join(f"{one:.3f}" for one in values))
        )
    kind = "active parameters" if concept.match == "active" else "parameters"
    said = (
        f"Two models of {SMALL['num_hidden_layers']} layers and width {SMALL['hidden_size']} with the same number of "
        f"{kind}, {STEPS} steps of {ROWS} x {LENGTH} bytes of Shakespeare, three seeds "
        f"({ABLATION.format(concept.slug)}). Loss in nats per byte of text that was held out:"
    )
    return f"{said}\n\n{table(('', 'loss', 'spread', 'by seed'), rows)}\n\n{verdict(rows)}"


def verdict(rows: list[tuple[str, str, str, str]]) -> str:
    """What the difference of two rows says."""
    (one, mine, spread, _), (other, theirs, its_spread, _) = rows
    difference = float(mine) - float(theirs)
    if abs(difference) <= max(float(spread), float(its_spread)):
        return f"The difference, {difference:+.3f}, is within the spread of the seeds: at this size it says nothing."
    better = one if difference < 0 else other
    return f"At this size the lower loss is that of {better}, by {abs(difference):.3f}; large models may differ."


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown, numbers to the right."""
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(['---', *['---:'] * (len(heads) - 1)])}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
