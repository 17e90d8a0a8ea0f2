"""zoo inspect FOLDER | OWNER/NAME | config.json | PRESET."""

import json
from typing import Annotated

import typer

from conversion.command import say

MODEL_HELP = (
    "A model folder, a Hub id owner/name[@revision] (its config.json alone is fetched), a config.json, or a preset "
    "(see `zoo presets`)."
)


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks: show what each of them holds.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert-parallel ranks; a multiple of --tp.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Every number of every layer as one JSON object.")] = False,
) -> None:
    """Show what each layer is and costs, for a config of zoo or of any known family. No weight is allocated."""
    from conversion.command import quiet
    from description_zoo.measure import measure

    from ..inspection import configured, found, stored
    from .placement import place

    quiet()
    folder, raw = found(model)
    config = configured(model, folder, raw)
    report = measure(config) | stored(folder, raw)
    if max(tp, ep) > 1:
        report["placement"] = place(config, tp, ep)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        show(report)


def show(report: dict) -> None:
    """The table, runs of equal layers in one row, and the totals."""
    from description_zoo.measure import layer_runs

    from .placement import show_placement
    from .tables import print_table, short, short_bytes

    rows = []
    for first, last, layer in layer_runs(report["layers"]):
        rows.append((
            str(first) if first == last else f"{first}-{last}",
            layer["mixer"],
            layer["context"],
            layer["mlp"],
            short(layer["parameters"]),
            short_bytes(layer["cache_bytes_per_token"]),
            short_bytes(layer["state_bytes"]) if report["state_bytes"] else "",
        ))  # fmt: skip
    columns = ("layer", "mixer", "context", "MLP", "parameters", "cache / token", "state")
    shown = len(columns) if report["state_bytes"] else len(columns) - 1
    print_table(columns[:shown], [row[:shown] for row in rows], numeric=(4, 5, 6))
    source = report["source_model_type"]
    say(f"{report['class']}{f' (from {source})' if source else ''}, {report['dtype']}")
    total, active, table = (report[name] for name in ("parameters", "active_parameters", "embedding_parameters"))
    say(f"parameters  {total:,}, of which {active:,} active per token, {table:,} in embedding and head")
    if report["prediction_parameters"]:
        say(f"            {report['prediction_parameters']:,} in layers that predict further tokens")
    say(f"weights     {short_bytes(report['bytes'])}")
    if "stored_as" in report:
        size = f", {short_bytes(report['stored_bytes'])}" if "stored_bytes" in report else ""
        say(f"stored as   {report['stored_as']}{size}")
    length = report["max_position_embeddings"]
    per_token, full = (short_bytes(report[f"cache_bytes_{part}"]) for part in ("per_token", "at_full_length"))
    say(f"cache       {per_token} per token, {full} at {length} tokens")
    if report["workspace_bytes"]:
        state, workspace = (short_bytes(report[f"{part}_bytes"]) for part in ("state", "workspace"))
        say(f"state       {state}, included above; decoding on a CPU adds buffers of {workspace}")
    if "placement" in report:
        say(show_placement(report["placement"]))
