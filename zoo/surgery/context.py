"""A longer context without training, by other frequencies of rotation; the price at short lengths is part of it.

    ntk      θ · s^(d / (d - 2)) for s times the length: fast pairs keep their frequency, slow ones stretch
    yarn     each frequency between keeping and stretching, by how often it turns (Peng et al. 2023, arXiv 2309.00071)
    same     the frequencies as they are

Where documents are short-sighted a sliding window of the trained length is better than any of them.
"""

from typing import Any

from configuration_zoo import ZooConfig

from .operation import APPROXIMATE, Exactness, Example, Operation, Request, SurgeryError, up_to

LENGTH, TABLE = "max_position_embeddings", "rope_parameters"


class Context(Operation):
    def __init__(self):
        super().__init__("length of the context", (LENGTH,), methods=("ntk", "yarn", "same"), parts=("mixer",))

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(LENGTH), int)

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.position_embedding_type != "rope":
            return []
        fields, note = {LENGTH: 2 * config.max_position_embeddings}, "longer texts; evaluate at both lengths"
        return [Example(fields, Exactness(APPROXIMATE), note, method) for method in ("ntk", "yarn")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for positions that are not rotations by one plain table, and for a shorter context."""
        if config.position_embedding_type != "rope":
            raise SurgeryError(
                f"position_embedding_type={config.position_embedding_type!r}: only rotations stretch to another length."
            )
        if request.fields[LENGTH] <= config.max_position_embeddings:
            raise SurgeryError(f"{LENGTH}={request.fields[LENGTH]} must be more than {config.max_position_embeddings}.")
        if not request.every:
            raise SurgeryError(f"{LENGTH} is one for all layers: leave out --layers.")
        tables = list(config.rope_tables.values())
        plain = len(tables) == 1 and tables[0].get("rope_type", "default") == "default"
        if request.method != "same" and not plain:
            raise SurgeryError(f"{TABLE} is scaled already, or has several tables: --method same keeps it.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        if request.method == "same":
            return up_to(config.max_position_embeddings)
        return Exactness(APPROXIMATE)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        factor = request.fields[LENGTH] / config.max_position_embeddings
        if request.method == "same":
            return dict(request.fields)
        table = dict(next(iter(config.rope_tables.values())))
        if request.method == "ntk":
            width = int(config.rotary_width(0) * table.get("partial_rotary_factor", 1.0))
            table["rope_theta"] = table["rope_theta"] * factor ** (width / (width - 2))
        else:
            table |= {"rope_type": "yarn", "factor": factor}
            table["original_max_position_embeddings"] = config.max_position_embeddings
        return request.fields | {TABLE: table}
