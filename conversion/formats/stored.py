"""What a storage format says of a checkpoint: which stored tensors make up which tensor of the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConversionError, one_line
from ..files.checkpoint import Checkpoint, RowTensors


@dataclass(frozen=True)
class Stored:
    """One tensor of the model: its shape, the stored tensors it is made of, and how.

    `decode(dtype, *tensors)` computes in float32 and rounds once, to `dtype`. `encode(weight, *tensors)` stores another
    weight in the same way, to the nearest, in place of `tensors`. `rows(start, stop)` says which rows of each stored
    tensor make up these rows of the model's (`Columns`: which columns; None: the whole tensor), `start` a multiple of
    `unit`, and `decode` makes them of those; None where rows are not stored by themselves.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    decode: Callable[..., Tensor]
    encode: Callable[..., tuple[Tensor, ...]]
    rows: "Rows | None" = None
    unit: int = 1


@dataclass(frozen=True)
class Columns:
    """A part of a stored matrix along its second dimension."""

    start: int
    stop: int


# Which part of each stored tensor belongs to some rows.
Rows = Callable[[int, int], tuple[tuple[int, int] | Columns | None, ...]]


def rows_alike(count: int, whole: int = 0) -> Rows:
    """The same rows of `count` stored tensors, and all of `whole` further ones."""
    return lambda start, stop: (*[(start, stop)] * count, *[None] * whole)


@dataclass
class Found:
    """What a format found: `tensors`, name in the model -> how it is stored, and `unused`, stored names that say
    nothing about weights (scales of activations)."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)

    def taken(self) -> set[str]:
        """All stored names that the format accounts for."""
        return {name for stored in self.tensors.values() for name in stored.names} | self.unused


class DecodedCheckpoint(RowTensors):
    """A checkpoint seen as the tensors of its model: what the format found in `dtype`, the rest as it is stored.

    `headers` (name -> meta tensor) and `read(name)` as a Checkpoint has them; one tensor is decoded at a time. Raises
    ConversionError for a tensor that is stored twice.
    """

    def __init__(self, checkpoint: Checkpoint, found: Found, dtype: torch.dtype, method: str):
        self.folder, self.checkpoint, self.found, self.method = checkpoint.folder, checkpoint, found, method
        taken = found.taken()
        self.headers = {name: tensor for name, tensor in checkpoint.headers.items() if name not in taken}
        for name, stored in found.tensors.items():
            if name in self.headers:
                raise ConversionError(f"{name!r} is stored twice, plain and as {stored.names[0]!r}: remove one.")
            self.headers[name] = torch.empty(stored.shape, dtype=dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        stored = self.found.tensors.get(name)
        if stored is None:
            return self.checkpoint.read(name)
        return self._decoded(name, stored, [self.checkpoint.read(part) for part in stored.names])

    def _decoded(self, name: str, stored: Stored, parts: list[Tensor]) -> Tensor:
        """Raises ConversionError for numbers in the parts that belong to nothing, such as groups that are not there."""
        try:
            return stored.decode(self.headers[name].dtype, *parts)
        except (IndexError, RuntimeError) as error:
            packed = ", ".join(map(repr, stored.names))
            raise ConversionError(f"{name!r} cannot be decoded from {packed}: {one_line(error)}") from error

    def place(self, name: str) -> tuple[Path, int] | None:
        return None if name in self.found.tensors else self.checkpoint.place(name)

    def unit(self, name: str) -> int:
        stored = self.found.tensors[name]
        return 0 if stored.rows is None else stored.unit

    def cut(self, name: str) -> int:
        return super().cut(name) if name in self.found.tensors else self.checkpoint.cut(name)

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self.found.tensors:
            return self.checkpoint.read_numbers(name, start, stop)
        return super().read_numbers(name, start, stop)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        stored = self.found.tensors.get(name)
        if stored is None:
            return self.checkpoint.read_rows(name, start, stop)
        if stored.rows is None or start % stored.unit:
            return self.read(name)[start:stop]
        parts = zip(stored.names, stored.rows(start, stop), strict=True)
        return self._decoded(name, stored, [self._part(one, some) for one, some in parts])

    def _part(self, stored: str, some: tuple[int, int] | Columns | None) -> Tensor:
        if some is None:
            return self.checkpoint.read(stored)
        if isinstance(some, Columns):
            return self.checkpoint.read_columns(stored, some.start, some.stop)
        return self.checkpoint.read_rows(stored, *some)

    def in_words(self) -> str:
        """`fp8, 14 tensors`"""
        return f"{self.method}, {len(self.found.tensors)} tensors"
