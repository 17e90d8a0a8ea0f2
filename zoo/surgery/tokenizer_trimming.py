"""A tokenizer with fewer tokens: which can go, and its files without them.

What a text of the kept tokens is split into stays the same: a token of BPE is kept with the two it is merged from, and
with theirs, down to single characters or bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .operation import SurgeryError

FILE, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
# The same tokenizer in other forms, which would be of the old numbers.
OTHER_FORMS = (
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "added_tokens.json",
)  # fmt: skip


def read_tokenizer(folder: Path | None) -> dict[str, Any]:
    """tokenizer.json of a folder. Raises SurgeryError for one without it, or of a kind whose tokens cannot be told."""
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        raise SurgeryError(f"vocab_size, --method used: {folder or 'a model in memory'} has no {FILE} to rewrite.")
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = content["model"].get("type")
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        raise SurgeryError(f"vocab_size, --method used: {FILE} is of the kind {kind!r}, whose tokens are not known.")
    return content


def token_numbers(content: dict[str, Any]) -> dict[str, int]:
    """{token: number}, added ones too."""
    vocabulary = content["model"]["vocab"]
    listed = {piece: number for number, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else {}
    added = {one["content"]: one["id"] for one in content.get("added_tokens") or ()}
    return {**(listed or vocabulary), **added}


def merge_pairs(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of BPE, in their order; [] of any other kind."""
    merges = content["model"].get("merges") or []
    return [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in merges]


def merged_token(content: dict[str, Any], first: str, second: str) -> str:
    """What a merge gives: the mark of a word's inside goes where the second part had it."""
    prefix = content["model"].get("continuing_subword_prefix") or ""
    return first + second.removeprefix(prefix)


def special_tokens(content: dict[str, Any], special: Iterable[int]) -> set[int]:
    """Added tokens, those of the config, and what stands for the unknown."""
    numbers = token_numbers(content)
    found = {one["id"] for one in content.get("added_tokens") or ()} | set(special)
    unknown = unknown_token(content, numbers)
    return found if unknown is None else found | {unknown}


def unknown_token(content: dict[str, Any], numbers: dict[str, int]) -> int | None:
    """What a character without a token becomes; None where it would vanish."""
    model = content["model"]
    return model["unk_id"] if isinstance(model.get("unk_id"), int) else numbers.get(model.get("unk_token"))


def basic_tokens(content: dict[str, Any]) -> set[int]:
    """Single characters and bytes, of which any text can be made."""
    numbers, model = token_numbers(content), content["model"]
    made = {merged_token(content, *pair) for pair in merge_pairs(content)}
    marks = (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")
    found = set()
    for token, number in numbers.items():
        bare = token.removeprefix(marks[0]).removesuffix(marks[1])
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        if is_byte or (len(bare) <= 1 and token not in made):
            found.add(number)
    return found


def chosen_tokens(content: dict[str, Any], counts: Tensor, size: int, special: Iterable[int]) -> tuple[list[int], bool]:
    """(the numbers of `size` tokens, whether any text can still be made of them): special ones, then the most frequent
    by `counts` `[V]` with what they are merged from, single characters and bytes, then the first. Where a character
    without a token would vanish, characters and bytes come before the others. Raises SurgeryError where `size` holds
    less than it must, or more tokens than there are."""
    numbers = token_numbers(content)
    known, basic, kept = set(numbers.values()), basic_tokens(content), special_tokens(content, special)
    if unknown_token(content, numbers) is None:
        kept |= basic
    if not len(kept) <= size <= len(known):
        raise SurgeryError(
            f"vocab_size={size}: the tokenizer has {len(known)} tokens, and {len(kept)} of them must stay; ask for a "
            "number between."
        )
    parts: dict[int, tuple[int, int]] = {}
    for first, second in merge_pairs(content):
        token = numbers.get(merged_token(content, first, second))
        if token is not None and first in numbers and second in numbers:
            parts.setdefault(token, (numbers[first], numbers[second]))
    said = [token for token in known if token < len(counts) and counts[token] > 0]
    order = [*sorted(said, key=lambda token: (-int(counts[token]), token)), *sorted(basic), *sorted(known)]
    for token in order:
        wanted = with_parts(token, parts) - kept
        if len(kept) + len(wanted) <= size:
            kept |= wanted
    # Where for the last places only tokens with parts were left.
    kept |= set([token for token in sorted(known) if token not in kept][: size - len(kept)])
    return sorted(kept), basic <= kept


def with_parts(token: int, parts: dict[int, tuple[int, int]]) -> set[int]:
    """A token and all that it is merged from."""
    found, waiting = set(), [token]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += parts.get(one, ())
    return found


def trimmed_tokenizer(content: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """The content of tokenizer.json with the kept tokens alone, numbered in their order."""
    place = {old: new for new, old in enumerate(kept)}
    new = json.loads(json.dumps(content))
    model, numbers = new["model"], token_numbers(content)
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = place[model["unk_id"]]
    else:
        model["vocab"] = {token: place[old] for token, old in model["vocab"].items() if old in place}
    if model.get("merges"):
        stays = {token for token, old in numbers.items() if old in place}
        pairs = merge_pairs(content)
        model["merges"] = [
            one
            for one, pair in zip(model["merges"], pairs, strict=True)
            if stays.issuperset((*pair, merged_token(content, *pair)))
        ]
    for one in new.get("added_tokens") or ():
        one["id"] = place[one["id"]]
    for processor in processors(new.get("post_processor")):
        renumber(processor, place)
    return new


def processors(given: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A post-processor and those inside it."""
    if given is None:
        return []
    return [given, *(one for inner in given.get("processors") or () for one in processors(inner))]


def renumber(processor: dict[str, Any], place: dict[int, int]) -> None:
    """The numbers that a post-processor says of special tokens."""
    special = processor.get("special_tokens")
    for one in special.values() if isinstance(special, dict) else ():
        one["ids"] = [place[old] for old in one["ids"]]
    for name in ("cls", "sep"):
        if isinstance(processor.get(name), list) and len(processor[name]) == 2:
            processor[name][1] = place[processor[name][1]]


def write_trimmed(folder: Path, kept: list[int]) -> None:
    """Rewrites the tokenizer, and the numbers in generation_config.json, that were copied into a new folder."""
    content = read_tokenizer(folder)
    text = json.dumps(trimmed_tokenizer(content, kept), ensure_ascii=False, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    for name in OTHER_FORMS:
        (folder / name).unlink(missing_ok=True)
    place = {old: new for new, old in enumerate(kept)}
    for name, keys in ((SETTINGS, ("added_tokens_decoder",)), (GENERATION, None)):
        path = folder / name
        if path.is_file():
            said = json.loads(path.read_text(encoding="utf-8"))
            said = with_numbers(said, place) if keys is None else with_decoder(said, place)
            path.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def with_decoder(said: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """tokenizer_config.json with the new numbers of added tokens."""
    decoder = said.get("added_tokens_decoder")
    if decoder is None:
        return said
    kept = {str(place[int(old)]): one for old, one in decoder.items() if int(old) in place}
    return said | {"added_tokens_decoder": kept}


def with_numbers(said: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """generation_config.json with the new numbers of tokens; those that are gone are left out of lists."""
    new = dict(said)
    for name, value in said.items():
        if name.endswith("token_id") or name in ("suppress_tokens", "begin_suppress_tokens"):
            new[name] = [place[old] for old in value if old in place] if isinstance(value, list) else place.get(value)
    return new


def counts_of(ids: Tensor, size: int) -> Tensor:
    """How often each token is in a text, `[size]`."""
    return torch.bincount(ids.flatten(), minlength=size)
