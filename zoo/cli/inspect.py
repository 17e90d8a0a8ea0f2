"""zoo inspect FOLDER | OWNER/NAME | config.json | PRESET."""

import json
from pathlib import Path
from typing import Annotated

import typer

from conversion.command import say

from .amounts import amount, one_of
from .errors import UserError

COLUMNS = (
    "layer", "mixer", "context", "positions", "and", "residual, norm", "MLP", "also", "parameters each",
    "cache / token", "state",
)  # fmt: skip
DTYPE_HELP = "Of weights and cache: float32, bfloat16 or float16. Default: as stored."
MODEL_HELP = (
    "A model folder, a Hub id owner/name[@revision] (its config.json alone is fetched), a config.json, or a preset "
    "(see `zoo presets`)."
)


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence. Default: all it can have.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    dtype: Annotated[str | None, typer.Option(help=DTYPE_HELP)] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks: show what each of them holds.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert-parallel ranks; a multiple of --tp.")] = 1,
    train: Annotated[
        bool, typer.Option("--train", help="Show the memory of a step of training; takes seconds.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="Of --train: adamw, sgd or sgd-momentum.")] = "adamw",
    tokens: Annotated[
        str | None, typer.Option(help="Show how long training on so many takes: 10B. Needs --gpu.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Show what one GPU makes of it: h100, h200, a100, b200 ...")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them train.")] = 1,
    utilization: Annotated[float, typer.Option(min=0.01, max=1, help="Share of their peak that training has.")] = 0.4,
    svg: Annotated[Path | None, typer.Option(help="Write a drawing of the architecture into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every number of every layer as one JSON object.")] = False,
) -> None:
    """Show what each layer is and costs, for a config of zoo or of any known family. No weight is allocated."""
    from conversion.command import quiet
    from description_zoo.picture import architecture_svg
    from description_zoo.training_memory import OPTIMIZERS

    from ..inspection import around, configured, found, reported, stored
    from .loading import parse_dtype

    quiet()
    wanted = {"gpus": gpus, "utilization": utilization, **on_gpu(gpu, tokens)}
    wanted["optimizer"] = one_of(optimizer, "--optimizer", OPTIMIZERS) if train else None
    folder, raw = found(model)
    config = configured(model, folder, raw)
    if dtype not in (None, "auto"):
        config.dtype = parse_dtype(dtype)
    report = reported(config, context=context, batch=batch, tp=tp, ep=ep, **wanted) | around(raw) | stored(folder, raw)
    if svg is not None:
        svg.write_text(architecture_svg(report), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(report))
    else:
        show(report)


def on_gpu(gpu: str | None, tokens: str | None) -> dict:
    """What --gpu and --tokens ask for; raises UserError for an unknown one, or for tokens without a GPU."""
    from description_zoo.gpus import GPUS

    if tokens and gpu is None:
        raise UserError(f"--tokens {tokens} needs --gpu, one of {', '.join(GPUS)}.")
    return {
        "gpu": one_of(gpu, "--gpu", GPUS) if gpu else None,
        "tokens": amount(tokens, "--tokens") if tokens else None,
    }


def show(report: dict) -> None:
    """The table, then what the model has and costs in all."""
    from description_zoo.measure import pattern_of

    from .inspect_costs import show_costs
    from .placement import show_placement
    from .tables import short_bytes

    show_layers(report)
    source, inside = report["source_model_type"], report.get("source_text_model_type")
    source = f"{source} around {inside}" if inside else source
    say(f"{report['class']}{f' (from {source})' if source else ''}, {report['dtype']}")
    say(f"layers      {pattern_of(report['layers'])}")
    for end in ("embedding", "head"):
        if report[end]:
            say(f"{end:<12}{', '.join(report[end])}")
    total, active, table = (report[name] for name in ("parameters", "active_parameters", "embedding_parameters"))
    least = report["least_active_parameters"]
    of_a_token = f"{active:,}" if least == active else f"{least:,} to {active:,}"
    say(f"parameters  {total:,}, of which {of_a_token} active per token, {table:,} in embedding and head")
    if report["prediction_parameters"]:
        say(f"            {report['prediction_parameters']:,} in layers that predict further tokens")
    say(f"weights     {short_bytes(report['bytes'])}")
    if "stored_as" in report:
        size = f", {short_bytes(report['stored_bytes'])}" if "stored_bytes" in report else ""
        say(f"stored as   {report['stored_as']}{size}")
    say(f"cache       {cache_words(report['cache'])}")
    if report["workspace_bytes"]:
        say(f"            decoding on a CPU adds buffers of {short_bytes(report['workspace_bytes'])}")
    if "placement" in report:
        say(show_placement(report["placement"]))
    show_costs(report)


def show_layers(report: dict) -> None:
    """The table: one row for each run of equal layers, those that repeat together once; no column that is empty."""
    from description_zoo.measure import layer_runs, repetitions

    from .tables import print_table

    rows = []
    for times, runs in repetitions(list(layer_runs(report["layers"]))):
        first, last = runs[0][0], runs[0][0] + times * (runs[-1][1] - runs[0][0] + 1) - 1
        if times > 1:
            rows.append((f"{first}-{last}", f"{times} times", *[""] * (len(COLUMNS) - 2)))
        for start, end, layer in runs:
            where = str(start) if start == end else f"{start}-{end}"
            rows.append((where if times == 1 else f"  {end - start + 1} x", *cells(layer)))
    shown = [index for index in range(len(COLUMNS)) if index in (0, 1) or any(row[index] for row in rows)]
    numeric = tuple(place for place, index in enumerate(shown) if index >= COLUMNS.index("parameters each"))
    print_table([COLUMNS[index] for index in shown], [[row[index] for index in shown] for row in rows], numeric=numeric)


def cells(layer: dict) -> tuple[str, ...]:
    """A layer's row behind its number."""
    from description_zoo.kinds import named_fields

    from .tables import short, short_bytes

    return (
        layer["mixer"],
        layer["context"],
        layer["positions"],
        ", ".join(layer["features"]),
        layer["residual"],
        layer["mlp"],
        ", ".join(named_fields(layer)),
        short(layer["parameters"]),
        short_bytes(layer["cache_bytes_per_token"]),
        short_bytes(layer["state_bytes"]) if layer["state_bytes"] else "",
    )


def cache_words(cache: dict) -> str:
    """`20 KiB per token + 200 MiB of windows + 30 MiB of state; 5.2 GiB at 262144 tokens x 4 sequences`."""
    from .tables import short_bytes

    parts = [f"{short_bytes(cache['bytes_per_token'])} per token"]
    parts += [f"{short_bytes(cache['window_bytes'])} of windows"] if cache["window_bytes"] else []
    parts += [f"{short_bytes(cache['state_bytes'])} of state"] if cache["state_bytes"] else []
    batch = f" x {cache['batch']} sequences" if cache["batch"] > 1 else ""
    return f"{' + '.join(parts)}; {short_bytes(cache['bytes'])} at {cache['context']} tokens{batch}"
