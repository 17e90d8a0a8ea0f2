"""Layers that do not rotate any more (NoPE, Kazemnejad et al. 2023, arXiv 2305.19466): they look at content alone."""

from typing import Any

from configuration_zoo import ZooConfig

from .operation import APPROXIMATE, Exactness, Example, Operation, Request, SurgeryError

TURNS = "no_rope_layers"


class NoRotation(Operation):
    def __init__(self):
        super().__init__("layers without rotation", (TURNS,), parts=("mixer",))

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get(TURNS)
        return wanted == 0 or (isinstance(wanted, list) and len(wanted) == config.num_hidden_layers)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(TURNS)
        return [
            index
            for index in range(config.num_hidden_layers)
            if config.rope_table_of(index) is not None and not (isinstance(wanted, list) and wanted[index])
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.position_embedding_type != "rope" or not self.layers(config, {}):
            return []
        return [Example({TURNS: 0}, Exactness(APPROXIMATE), "content alone: --layers auto:n, then heal")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for layers that would rotate from now on."""
        wanted, turns = request.fields[TURNS], self.turns(config)
        if isinstance(wanted, list) and any(new > old for new, old in zip(wanted, turns, strict=True)):
            raise SurgeryError(f"{TURNS}: a layer that has learned without rotation does not get one.")

    def turns(self, config: ZooConfig) -> list[int]:
        return list(config.no_rope_layers or [1] * config.num_hidden_layers)

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return {TURNS: [0 if layer in request.layers else old for layer, old in enumerate(self.turns(config))]}
