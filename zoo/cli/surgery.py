"""zoo surgery SOURCE [TARGET] --set FIELD=VALUE: the architecture of a trained model, changed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conversion.command import DTYPE_HELP, quiet, say

from .errors import UserError
from .loading import HUB_HELP

if TYPE_CHECKING:
    from zoo.surgery.possibilities import Possible

SOURCE_HELP = f"Folder of the model to change, {HUB_HELP}."
TARGET_HELP = "Folder to write; written completely or not at all. Default: list what can be changed."
SET_HELP = "What the new model's config is to say; may be given several times. Lists and dicts in JSON."
APPLY_HELP = "Instead of --set, an operation that changes no field, such as stream_rotation."
LAYERS_HELP = "Layers to change: 0,2-4, auto:2 for those that cost least, or all (default)."
CALIBRATE_HELP = "Text (.txt, .jsonl) whose statistics an approximate change is fitted to. Default: random tokens."
EVALUATE_HELP = "Text to measure perplexity with, before and after; its last rows are never learnt from."

HEAL_HELP = "Text to learn from afterwards what the change lost; `zoo heal TARGET` goes on if it is stopped."
PLAN_HELP = "YAML with several operations in order, texts and healing, instead of --set."
AT_MOST_HELP = "Write nothing if perplexity (of --evaluate) rises by more than this factor."


def surgery(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    target: Annotated[Path | None, typer.Argument(help=TARGET_HELP)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=SET_HELP)] = None,
    apply: Annotated[str | None, typer.Option(metavar="NAME", help=APPLY_HELP)] = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help=PLAN_HELP)] = None,
    method: Annotated[str | None, typer.Option(help="Another way of the same change, where there are several.")] = None,
    layers: Annotated[str | None, typer.Option(help=LAYERS_HELP)] = None,
    calibrate: Annotated[Path | None, typer.Option(metavar="TEXT", help=CALIBRATE_HELP)] = None,
    evaluate: Annotated[Path | None, typer.Option(metavar="TEXT", help=EVALUATE_HELP)] = None,
    heal: Annotated[Path | None, typer.Option(metavar="TEXT", help=HEAL_HELP)] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of healing on logits.")] = 150,
    train: Annotated[str, typer.Option(help="What learns in healing: all, changed, or lora.")] = "all",
    learning_rate: Annotated[float | None, typer.Option(help="Of healing. Default: follows from the width.")] = None,
    layerwise: Annotated[int | None, typer.Option(help="Steps on outputs first. Default: about half of these.")] = None,
    indexer: Annotated[int | None, typer.Option(help="Steps of new indexers first. Default: as many.")] = None,
    at_most: Annotated[float | None, typer.Option(metavar="FACTOR", help=AT_MOST_HELP)] = None,
    to: Annotated[str | None, typer.Option(metavar="MODEL_TYPE", help="Family to write. Default: zoo.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE_HELP)] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 500MB or 5GB.")] = "5GB",
    seed: Annotated[int, typer.Option(help="Seed of whatever is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and verify; measure and write nothing.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars, where there is a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Change the architecture of a trained model: exactly where mathematics allows, else calibrated and measured."""
    from zoo.surgery import Healing, operate, possible

    quiet()
    if target is None and not settings and plan is None and apply is None:
        show_possible(possible(source), as_json)
        return
    refuse_no_target(target, dry_run)
    options: dict[str, Any] = {
        "apply": apply,
        "method": method,
        "layers": layers,
        "calibrate": calibrate,
        "evaluate": evaluate,
    }
    how = Healing(steps, train, learning_rate, layerwise, seed, indexer)
    options |= {"heal": heal, "healing": how, "at_most": at_most}
    options |= {"to": to, "dtype": dtype, "max_shard_size": max_shard_size, "seed": seed, "overwrite": overwrite}
    options |= {"dry_run": dry_run, "progress": progress and sys.stderr.isatty()}
    wanted: Any = values_of(settings)
    if plan is not None:
        wanted, options = of_plan(plan, settings, options)
    show_report(operate(source, target, wanted, **options), as_json)


def of_plan(plan: Path, settings: list[str] | None, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the changes of a plan, what `operate` takes: what the plan says, else what the command line does). Raises
    UserError where both say what to change."""
    from zoo.surgery.plan_file import read_plan

    if settings or options["apply"] or options["method"] or options["layers"]:
        raise UserError("--plan says what to change: leave out --set, --apply, --method and --layers.")
    found = read_plan(plan)
    return found.changes, options | found.options


def refuse_no_target(target: Path | None, dry_run: bool) -> None:
    if target is None and not dry_run:
        raise UserError("TARGET is missing: name the folder to write, or use --dry-run.")


def values_of(settings: list[str] | None) -> dict[str, Any]:
    """["a=1", "b=x"] → {"a": 1, "b": "x"}. Raises UserError for one without a name and a value."""
    values = {}
    for text in settings or ():
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise UserError(f"--set {text}: write FIELD=VALUE.")
        try:
            values[name.strip()] = json.loads(value.replace("True", "true").replace("False", "false"))
        except ValueError:
            values[name.strip()] = value.strip()
    return values


def show_possible(rows: "list[Possible]", as_json: bool) -> None:
    """A table of what can be changed."""
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows]))
        return
    from .tables import print_table

    cells = []
    for row in rows:
        asked = " ".join(f"--set {name}={as_text(value)}" for name, value in row.fields.items())
        asked += f"--apply {row.apply}" if row.apply else ""
        asked += f" --method {row.method}" if row.method else ""
        numbers = f"{row.parameters:,}", f"{row.cache_bytes_per_token:,}"
        cells.append((asked, row.exactness, *numbers, row.note))
    print_table(("change", "exactness", "parameters", "cache bytes/token", "what for"), cells, numeric=(2, 3))


def as_text(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def show_report(report: Any, as_json: bool) -> None:
    """The table of what was done and measured."""
    if as_json:
        typer.echo(json.dumps(report.as_dict(), default=str))
        return
    for line in report.lines():
        say(line)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if report.target is not None:
        say(f"written: {report.target}")
