"""Tied → untied: the head gets the embedding's numbers as its own."""

from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from .operation import BITS, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError

TIED, EMBEDDING, HEAD = "tie_word_embeddings", "model.embed_tokens.weight", "lm_head.weight"


class UntiedHead(Operation):
    def __init__(self):
        super().__init__("a head of its own", (TIED,), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(TIED), bool)

    def examples(self, config: ZooConfig) -> list[Example]:
        note = "embedding and head can learn apart"
        return [Example({TIED: False}, Exactness(BITS), note)] if config.tie_word_embeddings else []

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for the other direction."""
        if request.fields[TIED]:
            raise SurgeryError(f"{TIED}=true: embedding and head are different numbers here, and one would be lost.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(BITS)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return {TIED: False}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        return [Rule(EMBEDDING, [EMBEDDING, HEAD], Make(lambda ctx, table: [table, table.clone()]))]
