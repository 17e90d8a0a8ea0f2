"""zoo convert SOURCE TARGET."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .tables import say

SOURCE_HELP = "On the way back: the checkpoint it came from, for what zoo does not use, where the folder has lost it."
ALONE_HELP = "On the way back: the language model alone, without vision tower or further prediction layers."


def convert(
    source: Annotated[str, typer.Argument(help="Folder with config.json and safetensors, or a Hub id owner/name.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; afterwards it is absent or complete.")],
    to: Annotated[str | None, typer.Option(metavar="MODEL_TYPE", help="Family to write. Without it: zoo.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Without it: as stored.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 500MB or 5GB.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it exists.")] = False,
    original: Annotated[str | None, typer.Option("--source", metavar="FOLDER|OWNER/NAME", help=SOURCE_HELP)] = None,
    text_only: Annotated[bool, typer.Option("--text-only", "--without-extras", help=ALONE_HELP)] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar, where there is a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the summary.")] = False,
) -> None:
    """Convert a published checkpoint into a zoo folder that loads anywhere, or a zoo folder back."""
    import conversion

    from .loading import quiet

    quiet()
    progress = progress and sys.stderr.isatty()
    company = {"source": original, "text_only": text_only}
    report = conversion.convert(source, target, to, dtype, max_shard_size, overwrite, progress, **company)
    if as_json:
        typer.echo(json.dumps(asdict(report), default=str))
        return
    say(f"{source} -> {target}: {report.model_type}, {report.parameters:,} parameters")
    if report.kept:
        say(f"kept for the way back, not used by zoo: {report.listed(report.kept)}")
    if report.left_behind:
        say(f"left behind: {report.listed(report.left_behind)}")
