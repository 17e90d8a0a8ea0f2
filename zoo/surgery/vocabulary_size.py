"""More tokens, or none of the last ones: rows of embedding and head.

    mean     a new token starts as the mean of all (Hewitt 2021): what is said does not change
    random   a new token starts at random, with the spread of the others
    used     so many tokens stay, those that a text needs first, and the tokenizer is rewritten for them

The logits of the tokens that stay are the same bits. Without `used`, fewer rows are for those that the tokenizer does
not use.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from .operation import Exactness, Example, Make, Operation, Request, Statistics, SurgeryError, bits_of

SIZE = "vocab_size"
TABLES = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
USED = "used"


class VocabularySize(Operation):
    def __init__(self):
        super().__init__("size of the vocabulary", (SIZE,), methods=("mean", "random", "used"), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(SIZE), int)

    def examples(self, config: ZooConfig) -> list[Example]:
        larger = -(-(config.vocab_size + 1) // 64) * 64
        fewer = {SIZE: max(1, config.vocab_size // 2)}
        return [
            Example({SIZE: larger}, bits_of(config.vocab_size), "further tokens, or rows that kernels like"),
            Example(
                fewer,
                bits_of(fewer[SIZE]),
                "the tokens that --calibrate needs, and their tokenizer",
                USED,
                needs_text=True,
            ),
        ]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where special tokens would go, or another table has a row for each token."""
        size = request.fields[SIZE]
        if size < 1:
            raise SurgeryError(f"{SIZE}={size} must be at least 1.")
        if config.hidden_size_per_layer_input:
            raise SurgeryError("hidden_size_per_layer_input: a second table has rows for tokens.")
        if request.method == USED:
            if size >= config.vocab_size:
                raise SurgeryError(f"{SIZE}={size}, --method used: there are {config.vocab_size}; ask for fewer.")
            return
        for name in TOKEN_FIELDS:
            value = getattr(config, name)
            if any(one is not None and one >= size for one in (value if isinstance(value, list) else [value])):
                raise SurgeryError(f"{SIZE}={size} would leave out {name}={value}.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return bits_of(config.vocab_size, request.fields[SIZE])

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        fields: dict[str, Any] = {SIZE: request.fields[SIZE]}
        if request.tokens is not None:
            place = {old: new for new, old in enumerate(request.tokens)}
            for name in (*TOKEN_FIELDS, "suppressed_token_ids"):
                value = getattr(config, name)
                if isinstance(value, list):
                    fields[name] = [place[old] for old in value if old in place]
                elif value is not None:
                    fields[name] = place[value]
        return fields

    def keeps(self, config: ZooConfig, request: Request) -> bool:
        """Whether tokens are to be chosen, by a text and by what the tokenizer needs."""
        return request.method == USED

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        size = request.fields[SIZE]

        def made(ctx: Any, rows: Tensor) -> list[Tensor]:
            return [resized(rows, size, request) if request.tokens is None else rows[torch.tensor(request.tokens)]]

        return [Rule(name, name, Make(made)) for name in TABLES]


def resized(rows: Tensor, size: int, request: Request) -> Tensor:
    """The first `size` rows, and new ones behind them."""
    if size <= len(rows):
        return rows[:size].contiguous()
    mean = rows.double().mean(0)
    new = mean.expand(size - len(rows), *rows.shape[1:]).clone()
    if request.method == "random":
        generator = torch.Generator().manual_seed(request.seed)
        drawn = torch.randn(new.shape, generator=generator, dtype=new.dtype).to(rows.device)
        new += drawn * rows.double().std(0)
    return torch.cat((rows, new.to(rows.dtype)))
