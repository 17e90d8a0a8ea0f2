"""The files beside the weights: tokenizer, chat template, generation settings, licences, the source's own card."""

import json
import shutil
from pathlib import Path
from typing import Any

from description_zoo.card_origin import CARD

from .checkpoint import inside, read_json
from .pickles import is_pickle
from .sidecar import FOLDER

# No code, no weights, no config.json, no name that a pickle goes by. A tokenizer that needs its repository's own Python
# stays there.
COMPANIONS = (
    "tokenizer*.json", "tokenizer*.model", "*.tiktoken", "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "emoji.json", "tekken.json", "spiece.model", "sentencepiece*.model",
    "*.jinja", "additional_chat_templates/*.jinja", "chat_template.json", "generation_config.json",
    "processor_config.json", "*preprocessor_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
# What a tokenizer.json says and nothing else. mistral-common is not what everyone has who loads the folder.
_PLAIN = {"PreTrainedTokenizer": "TokenizersBackend", "MistralCommonBackend": "TokenizersBackend"}


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies them; returns their names. Links are followed only inside the folder, pickles stay whatever their name."""
    names = sorted({path.relative_to(source).as_posix() for pattern in COMPANIONS for path in source.glob(pattern)})
    copied = [name for name in names if (source / name).is_file() and not name.endswith((".py", ".safetensors"))]
    copied = [name for name in copied if not is_pickle(inside(source, name))]
    for name in copied:
        _copy(inside(source, name), target / name)
    return copied


def keep_card(source: Path, target: Path) -> None:
    """The source's card, kept for converting back; the target gets its own."""
    if (source / CARD).is_file():
        _copy(inside(source, CARD), target / FOLDER / CARD)


def restore_card(source: Path, target: Path) -> None:
    """The inverse of `keep_card`."""
    if (source / FOLDER / CARD).is_file():
        _copy(inside(source, f"{FOLDER}/{CARD}"), target / CARD)


def pin_tokenizer_class(source: Path, target: Path) -> str | None:
    """transformers chooses a tokenizer's class by the model_type, at times against what tokenizer_config.json says, and
    zoo's model_type tells it nothing: the target's file says what the source's comes to. Returns it if that is news."""
    found = _tokenizer_class(source)
    said = _tokenizer_config(source) if found else {}
    if found is None or (found == _plain(said.get("tokenizer_class")) and "auto_map" not in said):
        return None
    if said:
        _copy(inside(source, TOKENIZER_CONFIG), target / FOLDER / TOKENIZER_CONFIG)
    text = json.dumps(_pinned(said, found), indent=2, ensure_ascii=False)
    (target / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")
    return found


def restore_tokenizer_config(source: Path, target: Path, pinned: str | None) -> None:
    """The inverse of `pin_tokenizer_class`; a tokenizer that was changed since stays as it is."""
    if pinned is None:
        return
    original = _tokenizer_config(source / FOLDER)
    if _tokenizer_config(target) != _pinned(original, pinned):
        return
    if original:
        _copy(inside(source, f"{FOLDER}/{TOKENIZER_CONFIG}"), target / TOKENIZER_CONFIG)
    else:
        (target / TOKENIZER_CONFIG).unlink()


def _pinned(said: dict[str, Any], found: str) -> dict[str, Any]:
    """Foreign code was not needed, and does not come along."""
    return {key: value for key, value in said.items() if key != "auto_map"} | {"tokenizer_class": found}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER_CONFIG
    return read_json(path) if path.is_file() else {}


def _tokenizer_class(folder: Path) -> str | None:
    """The class that transformers reads the folder's tokenizer by; None without one that loads by no foreign code."""
    from transformers import AutoTokenizer

    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        return None
    try:
        return _plain(type(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)).__name__)
    # Whatever is wrong with its files was so before.
    except Exception:
        return None


def _plain(name: str | None) -> str | None:
    name = name and name.removesuffix("Fast")
    return _PLAIN.get(name, name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
