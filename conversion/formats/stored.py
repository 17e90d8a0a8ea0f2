"""What a storage format says of a checkpoint: which stored tensors make up which tensor of the model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint


@dataclass(frozen=True)
class Stored:
    """One tensor of the model: its shape, the stored tensors it is made of, and how.

    `decode(dtype, *tensors)` computes in float32 and rounds once, to `dtype`. `encode(weight, *tensors)` stores another
    weight in the same way, in place of `tensors`; None where that takes more than rounding.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    decode: Callable[..., Tensor]
    encode: Callable[..., tuple[Tensor, ...]] | None = None


@dataclass
class Found:
    """What a format found: `tensors`, name in the model -> how it is stored, and `unused`, stored names that say
    nothing about weights (scales of activations)."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)

    def taken(self) -> set[str]:
        """All stored names that the format accounts for."""
        return {name for stored in self.tensors.values() for name in stored.names} | self.unused


class DecodedCheckpoint:
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
        return stored.decode(self.headers[name].dtype, *(self.checkpoint.read(part) for part in stored.names))

    def in_words(self) -> str:
        """`fp8, 14 tensors`"""
        return f"{self.method}, {len(self.found.tensors)} tensors"
