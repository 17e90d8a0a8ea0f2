"""What the fine-tuning examples share: a published family is converted, trained, and converted back.

The checkpoint is converted once and then loaded by the code in its folder. What was trained is a folder like any other,
with a card; from there it goes back to the family it came from, which loads without zoo.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CORPUS = EXAMPLES / "corpora" / "shakespeare.txt"
HELD_OUT = 24


def parser(text: str, name: str, steps: int, rate: float) -> argparse.ArgumentParser:
    """The options all have. `text` is the docstring of the example."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--source", type=Path, default=EXAMPLES / "stories260K", help="a checkpoint zoo converts")
    made.add_argument("--corpus", type=Path, default=CORPUS)
    made.add_argument("--output", type=Path, default=Path("output") / name)
    made.add_argument("--steps", type=positive, default=steps)
    made.add_argument("--rate", type=float, default=rate)
    return made


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def converted(options: argparse.Namespace) -> tuple[Path, PreTrainedTokenizerBase]:
    """The zoo folder of --source, made once, and its tokenizer, which gets a token for padding if it has none."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    base = options.output / "base"
    if not base.is_dir():
        # Once; from here on the folder is all that is needed.
        from conversion import convert

        convert(options.source, base)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    return base, tokenizer


def save_adapter(adapted: PreTrainedModel, options: argparse.Namespace, **how: object) -> Path:
    """Saves what PEFT has put around a model, with a card; -> the folder."""
    folder = options.output / "adapter"
    adapted.save_pretrained(folder, **how)
    # Late: once zoo is imported, its own classes stand in for the code in a folder.
    from zoo.training import write_card

    write_card(folder)
    return folder


def hand_back(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> None:
    """Saves what was trained as a folder with a card, and as a checkpoint of the family it came from."""
    from conversion import convert
    from zoo.training import write_card

    merged, back = options.output / "merged", options.output / "back"
    model.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    write_card(merged, options.output / "base")
    family = model.config.source_config["model_type"]
    convert(merged, back, to=family, overwrite=True)
    print(f"{merged} has the model, {back} the same as a {family} checkpoint")


def speeches(text: str, number: int = 400) -> list[dict[str, str]]:
    """{"prompt": a speech and the next speaker's name, "completion": what that one says}, of a play."""
    parts = [part.strip() for part in text.split("\n\n")]
    parts = [part for part in parts if ":\n" in part and len(part) < 200]
    rows = []
    for before, after in zip(parts, parts[1:], strict=False):
        name, _, words = after.partition(":\n")
        rows.append({"prompt": f"{before}\n\n{name}:\n", "completion": words})
    if len(rows) <= HELD_OUT:
        raise ValueError(
            f"The corpus has {len(rows)} speeches (NAME:, a line, an empty line); more than {HELD_OUT} are needed."
        )
    return rows[:number]


def run(main: Callable[[], None]) -> None:
    """Runs an example; what was wrong with its input is one sentence, not a traceback."""
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
