"""What can be changed in a model: one row for each operation that its config allows. Nothing is read but the config."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.loading import config_of_folder
from conversion.files.sources import read_config, resolve_source

from .measurement import sizes
from .operating import changed_config
from .operation import Example, Operation, Request, SurgeryError, alike_layers
from .registry import OPERATIONS


@dataclass
class Possible:
    """An operation with values to set: how exact, and the sizes of the model that it would give."""

    name: str
    fields: dict[str, Any]
    apply: str | None
    method: str | None
    exactness: str
    parameters: int
    cache_bytes_per_token: int
    note: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def possible(source: ZooConfig | str | Path) -> list[Possible]:
    """Rows for a config, or for what a folder or Hub id holds."""
    if not isinstance(source, ZooConfig):
        folder = resolve_source(source)
        source = config_of_folder(folder, read_config(folder))
    rows = []
    for operation in OPERATIONS:
        with suppress(SurgeryError), alike_layers(operation.name):
            for example in operation.examples(source):
                if row := row_of(source, operation, example):
                    rows.append(row)
    return rows


def row_of(config: ZooConfig, operation: Operation, example: Example) -> Possible | None:
    """A row, None where the operation or the config refuses these values."""
    layers = operation.layers(config, example.fields)
    method = example.method or (operation.methods or (None,))[0]
    count = operation.number_to_choose(config, example.fields)
    request = Request(example.fields, layers[:count], method, every=count is None)
    try:
        operation.check(config, request)
        new = changed_config(config, operation.config(config, request))
    except SurgeryError:
        return None
    found = sizes(new)
    return Possible(
        operation.name,
        example.fields,
        operation.applied or None,
        example.method,
        str(example.exactness),
        found["parameters"],
        found["cache_bytes_per_token"],
        example.note,
    )
