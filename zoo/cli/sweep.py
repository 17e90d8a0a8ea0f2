"""zoo sweep SWEEP.yaml."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from conversion.command import say

from .train import SET_HELP, silence


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML file: see examples/sweep.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=SET_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the sizes and costs of the variants.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress, the log and samples.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Train variants of one recipe, with several seeds, of one size or one cost; compare them in one table and one
    plot. Started again, it goes on where it stopped."""
    from conversion.command import quiet

    from ..training.variants import sweep as run

    quiet()
    shows = progress and not as_json
    silence(shows)
    done = run(recipe, overrides or (), dry_run=dry_run, shows=shows, say=None if as_json else say)
    typer.echo(json.dumps(done)) if as_json else show(done, dry_run)
    if done["failed"]:
        raise typer.Exit(1)


def show(done: dict[str, Any], dry_run: bool) -> None:
    """The table, then what failed."""
    from ..training.variants_table import COLUMNS, PICTURE, TABLE, cells
    from .tables import print_table

    print_table(COLUMNS, [cells(row) for row in done["variants"]], numeric=tuple(range(1, len(COLUMNS))))
    if not dry_run:
        say(f"the same in {Path(done['output']) / TABLE}, curves in {Path(done['output']) / PICTURE}")
    for name, why in done["failed"].items():
        say(f"{name}: {why}")
