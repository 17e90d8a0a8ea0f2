"""Whether two models read a text as the same tokens, and which tokens of one can be left out."""

from pathlib import Path
from typing import TYPE_CHECKING

from configuration_zoo import ZooConfig

from .operation import Request, SurgeryError
from .tensors import Source
from .texts import Text
from .tokenizer_trimming import chosen_tokens, counts_of, read_tokenizer
from .vocabulary_size import TOKEN_FIELDS

if TYPE_CHECKING:
    from .operating import State


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


def tokens_to_keep(state: "State", request: Request, text: Text | None) -> list[int]:
    """The tokens that stay, by the source's tokenizer and a text. Raises SurgeryError without either, and where some
    went before."""
    if state.kept_tokens is not None:
        raise SurgeryError("vocab_size, --method used: tokens were left out already; say the final number at once.")
    if text is None:
        raise SurgeryError("vocab_size, --method used: --calibrate names the text whose tokens are to stay.")
    if state.config.vocab_size != state.source.config.vocab_size:
        raise SurgeryError("vocab_size, --method used: rows were added before; leave tokens out first.")
    config, content = state.config, read_tokenizer(state.source.folder)
    special = [getattr(config, name) for name in TOKEN_FIELDS]
    special = [one for value in special for one in (value if isinstance(value, list) else [value]) if one is not None]
    counts = counts_of(text.ids, config.vocab_size)
    kept, is_complete = chosen_tokens(content, counts, request.fields["vocab_size"], special)
    if not is_complete:
        state.warnings.append("some single characters or bytes have no token any more: they become the unknown one.")
    return kept
