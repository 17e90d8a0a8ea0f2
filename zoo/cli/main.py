"""The command line: one subcommand per file, each of which imports torch only when it runs."""

import sys
from typing import Annotated

import typer

from conversion.command import convert, run

from .advise import advise
from .diff import diff
from .export import export
from .families import families
from .flags import flags
from .generate import generate
from .heal import heal
from .inspect import inspect
from .merge import merge
from .presets import presets
from .push import push
from .site import site
from .surgery import surgery
from .sweep import sweep
from .train import train
from .verify import verify

app = typer.Typer(
    help="One transformers model for every modern decoder: convert, inspect, run and compare checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        from zoo import __version__

        typer.echo(f"zoo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


COMMANDS = (
    advise,
    convert,
    diff,
    export,
    families,
    flags,
    generate,
    heal,
    inspect,
    merge,
    verify,
    presets,
    push,
    site,
    surgery,
    sweep,
    train,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(app, "zoo"))
