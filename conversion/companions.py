"""The files beside the weights: tokenizer, chat template, generation settings, licences, the source's own card."""

import shutil
from pathlib import Path

from .checkpoint import inside
from .sidecar import FOLDER

# No code, no weights, no config.json. A tokenizer that needs its repository's own Python stays there.
COMPANIONS = (
    "tokenizer*.json", "tokenizer*.model", "*.tiktoken", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", "sentencepiece*.model", "*.jinja", "additional_chat_templates/*.jinja",
    "chat_template.json", "generation_config.json", "processor_config.json", "*preprocessor_config.json",
    "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
CARD = "README.md"


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies them; returns their names. Links are followed only inside the folder."""
    names = sorted({path.relative_to(source).as_posix() for pattern in COMPANIONS for path in source.glob(pattern)})
    copied = [name for name in names if (source / name).is_file() and not name.endswith((".py", ".safetensors"))]
    for name in copied:
        _copy(inside(source, name), target / name)
    return copied


def keep_card(source: Path, target: Path) -> None:
    """The source's card, kept for the way back; the target gets its own."""
    if (source / CARD).is_file():
        _copy(inside(source, CARD), target / FOLDER / CARD)


def restore_card(source: Path, target: Path) -> None:
    """The inverse of `keep_card`."""
    if (source / FOLDER / CARD).is_file():
        _copy(inside(source, f"{FOLDER}/{CARD}"), target / CARD)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
