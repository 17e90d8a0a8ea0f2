"""What the examples do with a wrong input: one sentence and an exit code, as the `zoo` command does.

ZOO_DEBUG=1 shows the traceback.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from conversion.errors import report


def parser(text: str) -> argparse.ArgumentParser:
    """`text`: the docstring of the example."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def model(text: str) -> str:
    """A model's folder, or its name on the Hub; for argparse."""
    if (Path(text) / "config.json").is_file() or (not Path(text).exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", text)):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither the folder of a model nor owner/name of one on the Hub")


def run(main: Callable[[], None]) -> None:
    """Runs an example."""
    program = Path(sys.argv[0]).name
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(f"{program}: there is no {error.name} in this environment: pip install it.")
    except Exception as error:
        sys.exit(report(error, program))
