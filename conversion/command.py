"""The command line of a conversion: `python -m conversion SOURCE TARGET`, which `zoo convert` is too."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from description_zoo.foreign_text import printable

from .errors import report

# What torchao and bitsandbytes print while they are imported, by whatever module: which kernels they do without, and
# torch's remark about an enumeration of torchao's.
TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")
MODEL_HELP = "Folder with config.json and safetensors, a GGUF file, or a Hub id owner/name[@revision]."
SOURCE_HELP = "When converting back: the original checkpoint, for tensors that zoo does not use and the folder lacks."
PICKLE_HELP = "Open weights that are pickles (*.bin, *.pth), for tensors alone. Off by default: a pickle can run code."
QUANTIZED_HELP = (
    "Keep the stored tensors of a quantised checkpoint: they go back bit for bit, changed ones encoded again."
)
QUANTIZE_HELP = (
    "fp8-block: projections and experts in FP8, 128 x 128 to a scale, as vLLM serves them (default --to: own)."
)
DTYPE_HELP = (
    "float32, bfloat16 or float16. Default: as stored, of quantised weights the dtype config.json names, else bfloat16."
)
ALONE_HELP = "When converting back: only the language model, without vision tower or further prediction layers."


def convert(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    target: Annotated[Path, typer.Argument(help="Folder to write; written completely or not at all.")],
    to: Annotated[str | None, typer.Option(metavar="MODEL_TYPE", help="Family to convert to. Default: zoo.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE_HELP)] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 500MB or 5GB.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it exists.")] = False,
    original: Annotated[str | None, typer.Option("--source", metavar="FOLDER|OWNER/NAME", help=SOURCE_HELP)] = None,
    text_only: Annotated[bool, typer.Option("--text-only", "--without-extras", help=ALONE_HELP)] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help=PICKLE_HELP)] = False,
    keep_quantized: Annotated[bool, typer.Option("--keep-quantized", help=QUANTIZED_HELP)] = False,
    quantize: Annotated[str | None, typer.Option(metavar="SCHEME", help=QUANTIZE_HELP)] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar, where there is a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the summary.")] = False,
) -> None:
    """Convert a published checkpoint into a zoo folder that loads anywhere, or a zoo folder back into its family."""
    from . import convert as convert_checkpoint

    quiet()
    progress = progress and sys.stderr.isatty()
    options = {"source": original, "text_only": text_only, "allow_pickle": allow_pickle}
    options |= {"keep_quantized": keep_quantized, "quantize": quantize}
    done = convert_checkpoint(source, target, to, dtype, max_shard_size, overwrite, progress, **options)
    if as_json:
        typer.echo(json.dumps(asdict(done), default=str))
        return
    say(f"{source} -> {target}: {done.model_type}, {done.parameters:,} parameters")
    read, written = (f"{size / 1e6:,.1f} MB" for size in (done.read_bytes, done.written_bytes))
    say(f"read as {done.read_as}, {read}; written as {done.written_as}, {written}")
    if done.lacks_tokenizer:
        say(
            "the tokenizer inside is not one that transformers reads: put the files of the original one into the folder"
        )
    if done.kept:
        say(f"kept for converting back, not used by zoo: {done.listed(done.kept)}")
    if done.left_behind:
        say(f"left behind: {done.listed(done.left_behind)}")


def say(text: object) -> None:
    """Print a line that may quote a file, without the control characters that a terminal would act on."""
    typer.echo(printable(text))


def quiet() -> None:
    """Progress bars and log lines of the libraries would land in the middle of our own output."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        # A download is long: what transformers has just silenced along with its own.
        enable_progress_bars()


def run(app: typer.Typer, program: str, arguments: list[str] | None = None) -> int:
    """Run a command line; -> the exit code. 0: done; 1: failed; 2: wrong usage; a failure is one sentence on stderr."""
    for library in TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        return app(arguments, prog_name=program, standalone_mode=False) or 0
    except Exception as error:
        return report(error, program)
