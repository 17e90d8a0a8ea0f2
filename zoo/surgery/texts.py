"""Texts as rows of tokens: what is calibrated, healed and measured with."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from configuration_zoo import ZooConfig

from .operation import SurgeryError

# Between documents of a text file, a line of its own.
END_OF_TEXT = "<|endoftext|>"
# The last eighth of a text, at most so many rows, is read for measuring alone.
HELD_OUT, HELD_OUT_SHARE = 32, 8
# Tokens of a row.
ROW = 512


@dataclass(frozen=True)
class Text:
    """Rows of tokens `[n, T]`, in the order of the text; `sha256` of the tokens says which they are."""

    ids: Tensor
    name: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ids.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()

    @property
    def held_out(self) -> int:
        rows = len(self.ids)
        return min(HELD_OUT, -(-rows // HELD_OUT_SHARE)) if rows >= HELD_OUT_SHARE else 0

    def to_learn(self) -> Tensor:
        """The rows that are calibrated and healed with."""
        return self.ids[: len(self.ids) - self.held_out]

    def to_measure(self, tokens: int) -> Tensor:
        """The rows that are measured with, as many as hold `tokens`; all there are for a text of few rows."""
        kept = self.ids[len(self.ids) - self.held_out :] if self.held_out else self.ids
        return kept[: max(1, -(-tokens // kept.shape[1]))]


def read_text(
    text: "str | Path | Sequence[str] | Tensor", folder: Path | None, config: ZooConfig, length: int = ROW
) -> Text:
    """A file (.txt, documents separated by lines of <|endoftext|>; .jsonl, by its "text"), a list of texts, or tokens
    `[n, T]`, as rows of `length`. Raises SurgeryError for a text without a whole row or outside the vocabulary."""
    length = min(length, config.max_position_embeddings)
    if isinstance(text, Tensor):
        ids, name = text.flatten(), "tokens"
        length = min(length, text.shape[-1])
    else:
        name = str(text) if isinstance(text, (str, Path)) else "texts"
        ids = token_ids(_documents(text), folder)
    if len(ids) < max(length, 1):
        raise SurgeryError(f"{name} has {len(ids):,} tokens, fewer than one row of {length:,}: give a longer text.")
    if (largest := int(ids.max())) >= config.vocab_size:
        raise SurgeryError(
            f"{name} has token {largest}, outside the vocabulary of {config.vocab_size:,}: it was made for another "
            "tokenizer."
        )
    return Text(ids[: len(ids) // length * length].view(-1, length), name)


def random_text(config: ZooConfig, tokens: int, length: int, seed: int) -> Text:
    """Random tokens, for a calibration without any text."""
    length = min(length, config.max_position_embeddings)
    rows = max(1, tokens // length)
    drawn = torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Text(drawn, "random tokens")


def _documents(text: "str | Path | Sequence[str]") -> list[str]:
    if not isinstance(text, (str, Path)):
        return list(text)
    path = Path(text)
    if not path.is_file():
        raise SurgeryError(f"{path} is no file of text (.txt or .jsonl).")
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".jsonl":
        return [part.strip() for part in content.split(END_OF_TEXT) if part.strip()]
    try:
        return [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise SurgeryError(f'{path} is not JSON lines with a "text" each: {error}.') from error


def token_ids(documents: list[str], folder: Path | None) -> Tensor:
    """All documents, one after the other, each as the tokenizer begins and ends a text."""
    from transformers import AutoTokenizer

    if folder is None:
        raise SurgeryError("a model in memory has no tokenizer: give tokens `[n, T]` instead of a text.")
    if not documents:
        return torch.zeros(0, dtype=torch.int64)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise SurgeryError(f"{folder} has no tokenizer that reads a text: give tokens instead.") from error
    encoded = tokenizer(documents, add_special_tokens=True, verbose=False).input_ids
    return torch.tensor([token for one in encoded for token in one], dtype=torch.int64)
