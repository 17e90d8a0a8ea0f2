"""The command line: one subcommand per file, each of which imports torch only when it runs."""

import sys

import typer

from .convert import convert
from .errors import report
from .generate import generate
from .inspect import inspect
from .presets import presets
from .push import push
from .verify import verify

app = typer.Typer(
    help="One transformers model for every modern decoder: convert, look into, run and compare checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (convert, generate, inspect, verify, presets, push):
    app.command()(command)


def main() -> None:
    """Run the command line. Exit code 0: done; 1: failed; 2: wrong usage; a failure is one sentence on stderr."""
    try:
        sys.exit(app(prog_name="zoo", standalone_mode=False))
    except Exception as error:
        sys.exit(report(error))
