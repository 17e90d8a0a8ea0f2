"""zoo merge PLAN TARGET: several models become one, as mergekit's YAML says."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from conversion.command import DTYPE_HELP, quiet

from .surgery import refuse_no_target, show_report

PLAN_HELP = "YAML as mergekit reads it: merge_method and models or slices, or experts."
EVALUATE_HELP = "Text to measure perplexity with, of the first model and of the new one."


def merge(
    plan: Annotated[Path, typer.Argument(help=PLAN_HELP)],
    target: Annotated[Path | None, typer.Argument(help="Folder to write; written completely or not at all.")] = None,
    evaluate: Annotated[Path | None, typer.Option(metavar="TEXT", help=EVALUATE_HELP)] = None,
    to: Annotated[str | None, typer.Option(metavar="MODEL_TYPE", help="Family to write. Default: zoo.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE_HELP)] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 500MB or 5GB.")] = "5GB",
    seed: Annotated[int, typer.Option(help="Seed of whatever is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the plan and the models.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars, where there is a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Merge models, of whatever families: they are brought to common flags first, exactly."""
    from zoo.surgery import merge as merge_models

    quiet()
    refuse_no_target(target, dry_run)
    options = {"to": to, "dtype": dtype, "max_shard_size": max_shard_size, "seed": seed, "overwrite": overwrite}
    shows = progress and not as_json and sys.stderr.isatty()
    show_report(merge_models(plan, target, evaluate=evaluate, dry_run=dry_run, progress=shows, **options), as_json)
