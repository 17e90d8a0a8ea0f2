"""`python -m conversion SOURCE TARGET [--to MODEL_TYPE]`: without --to into zoo, with it out again."""

import signal
import sys

import typer

from .command import convert, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; -> the exit code."""
    options = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=options)
    app.command()(convert)
    return run(app, "python -m conversion", arguments)


if __name__ == "__main__":
    # Ctrl-C ends any program at once and without a traceback; a target that is half built is removed first.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
