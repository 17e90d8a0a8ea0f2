"""Whether two models read a text as the same tokens."""

from pathlib import Path

from configuration_zoo import ZooConfig

from .operation import SurgeryError
from .tensors import Source


def same_vocabulary(first: Source, other: Source) -> None:
    """Raises SurgeryError where two models have other tokens, or other numbers for them."""
    sizes = first.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise SurgeryError(
            f"vocab_size differs: {first.name} has {sizes[0]:,}, {other.name} {sizes[1]:,}; bring both to one "
            "vocabulary first."
        )
    ours, theirs = tokens_of(first.folder), tokens_of(other.folder)
    if ours is None or theirs is None or ours == theirs:
        return
    token = next(token for token in sorted({*ours, *theirs}) if ours.get(token) != theirs.get(token))
    raise SurgeryError(
        f"the tokenizers differ: {token!r} is {ours.get(token)} in {first.name}, {theirs.get(token)} in {other.name}."
    )


def refuse_lost_tokens(source: Source, config: ZooConfig) -> None:
    """Raises SurgeryError where the tokenizer has tokens that a smaller vocabulary has no rows for."""
    if config.vocab_size >= source.config.vocab_size:
        return
    largest = max((tokens_of(source.folder) or {"": -1}).values())
    if largest >= config.vocab_size:
        raise SurgeryError(f"vocab_size={config.vocab_size}: the tokenizer has tokens up to {largest}.")


def tokens_of(folder: Path | None) -> dict[str, int] | None:
    """{token: number}; None for a folder without a tokenizer that transformers reads."""
    from transformers import AutoTokenizer

    if folder is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(folder).get_vocab()
    except (OSError, ValueError, KeyError):
        return None
