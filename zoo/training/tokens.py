"""The tokenizer of a recipe, taken or trained, and text as rows of tokens."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .packing import pack
from .recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .recipe import DataRecipe, TokenizerRecipe

# In a trained tokenizer: what begins and ends a document, and what fills a batch up.
DOCUMENT, PADDING = "<|endoftext|>", "<|padding|>"
BATCH = 256


def take_tokenizer(recipe: "TokenizerRecipe", folder: Path, kept: Path) -> "PreTrainedTokenizerBase | None":
    """The one in `kept`, where a run before this one left it, or the one the recipe names; None: one is to be trained.
    Raises RecipeError for one that has no token to end a document with."""
    from transformers import AutoTokenizer

    if (kept / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(kept)
    if recipe.path is None:
        return None
    local = folder / recipe.path
    tokenizer = AutoTokenizer.from_pretrained(local if local.is_dir() else recipe.path)
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"tokenizer.path={recipe.path!r}: this tokenizer has no token that ends a document (eos_token)."
        )
    return tokenizer


def train_tokenizer(recipe: "TokenizerRecipe", texts: Iterable[str]) -> "PreTrainedTokenizerBase":
    """Byte-level BPE (Sennrich et al. 2016; GPT-2): every text has tokens, and these give it back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + 2 if recipe.kind == "bytes" else recipe.vocab_size
    if size < len(alphabet) + 2:
        raise RecipeError(f"tokenizer.vocab_size={size}: there are {len(alphabet)} bytes and two tokens beside them.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[DOCUMENT, PADDING], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(at_most(texts, recipe.train_bytes) if recipe.kind == "bpe" else [], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=DOCUMENT, eos_token=DOCUMENT, pad_token=PADDING
    )


def at_most(texts: Iterable[str], size: int) -> Iterator[str]:
    """Texts until `size` bytes of them have gone by, in parts that a trainer counts quickly."""
    for text in texts:
        for start in range(0, len(text), 100_000):
            part = text[start : start + 100_000]
            yield part
            size -= len(part.encode())
            if size <= 0:
                return


def encoder(tokenizer: "PreTrainedTokenizerBase") -> Callable[[Iterable[str]], Iterator[list[int]]]:
    """Texts → token ids of documents, with the token that begins one, where there is any, and the one that ends it."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def encode(texts: Iterable[str]) -> Iterator[list[int]]:
        texts = iter(texts)
        while batch := list(islice(texts, BATCH)):
            for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                yield [*begin, *ids, tokenizer.eos_token_id]

    return encode


def as_tensors(row: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A row as a Trainer takes it, three `[T]` of int64."""
    return {name: torch.tensor(values) for name, values in row.items()}


class PackedRows(torch.utils.data.Dataset):
    """Rows that are held, as int32."""

    def __init__(self, rows: Iterable[dict[str, list[int]]]):
        held = [{name: torch.tensor(values, dtype=torch.int32) for name, values in row.items()} for row in rows]
        self.rows = {name: torch.stack([row[name] for row in held]) for name in held[0]} if held else {}

    def __len__(self) -> int:
        return len(self.rows["input_ids"]) if self.rows else 0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index].long() for name, values in self.rows.items()}


class StreamedRows(torch.utils.data.IterableDataset):
    """Rows of documents as they come; each iteration begins with the first again."""

    def __init__(self, make: Callable[[], Iterable[dict[str, list[int]]]]):
        self.make = make

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return map(as_tensors, self.make())


def pack_texts(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", data: "DataRecipe"
) -> Iterator[dict[str, Any]]:
    """Texts → rows of data.length tokens."""
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pack(encoder(tokenizer)(texts), data.length, filler, data.packing, data.buffer)
