"""zoo train RECIPE.yaml."""

import json
from pathlib import Path
from typing import Annotated

import typer

from conversion.command import say

SET_HELP = "Override a field, such as training.max_steps=100 or hidden_size=256; may be given several times."


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file: see examples/pretrain.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=SET_HELP)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the output folder.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it will cost.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress, the log and samples.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of sentences.")] = False,
) -> None:
    """Train a model from nothing, or a trained one further, by a recipe: data, tokenizer, any flags, any training
    argument."""
    from conversion.command import quiet

    from ..training.run import train as run

    quiet()
    shows = progress and not as_json
    silence(shows)
    done = run(
        recipe,
        overrides or (),
        resume=resume,
        dry_run=dry_run,
        shows=shows,
        say=None if as_json else say,
    )
    if as_json:
        typer.echo(json.dumps(done))


def silence(shows: bool) -> None:
    """No remarks of libraries between lines of ours; without `shows` no bars either."""
    import os
    import warnings

    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not shows:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
