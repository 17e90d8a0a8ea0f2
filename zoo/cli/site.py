"""zoo site OUT [MODEL...]: a gallery of all models as a folder of plain files."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError


def site(
    out: Annotated[Path, typer.Argument(help="Folder to write: index.html opens in a browser, models.json is data.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="Models of your own beside all others: see `zoo inspect`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a gallery of every preset and family: drawings, parameters, cache, operations, and a diff of any two."""
    import sys

    from tqdm import tqdm

    from conversion.command import quiet, say

    from ..site.data import write_site

    quiet()
    check_folder(out, overwrite)
    with tqdm(unit=" models", disable=not sys.stderr.isatty()) as bar:
        count = write_site(out, models or (), told=lambda name: bar.update())
    say(f"{count} models in {out}: open {out / 'index.html'}")


def check_folder(out: Path, overwrite: bool) -> None:
    """Raises UserError for a file, and for a folder with something in it that may not be written into."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} exists and is not empty: choose another folder, or pass --overwrite.")
