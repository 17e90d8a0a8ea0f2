"""Tensors of another layout as those transformers' class has: other names, pieces of parallel ranks put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import RowTensors, StoredTensors


@dataclass(frozen=True)
class Relaid:
    """One tensor of the model: the stored pieces it is made of, and `join(*pieces)`, which makes it of them.

    `dim`: the dimension along which the pieces lie one after another, of which every `alike`-th counts; `unit` rows
    make up rows of the model's tensor by themselves, `turned(rows)`. None: the pieces are read whole.
    """

    pieces: tuple[tuple[StoredTensors, str], ...]
    join: Callable[..., Tensor]
    dim: int | None = None
    unit: int = 1
    alike: int = 1
    turned: Callable[[Tensor], Tensor] | None = None


class RelaidCheckpoint(RowTensors):
    """`headers` (name -> meta tensor) and `read(name)` as a checkpoint of transformers' layout has them."""

    def __init__(self, folder: Path, tensors: dict[str, Relaid]):
        self.folder, self.tensors = folder, tensors
        self.headers = {name: self._joined(name, headers=True) for name in tensors}

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        return self._joined(name)

    def unit(self, name: str) -> int:
        relaid = self.tensors[name]
        return 0 if relaid.dim is None or self.headers[name].dim() < 2 else relaid.unit

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows, of the pieces that have them; whole heads, where their rows change places."""
        relaid, unit = self.tensors[name], self.unit(name)
        if not unit or start % unit or (stop % unit and stop < self.headers[name].shape[0]):
            return self.read(name)[start:stop]
        pieces, parts, first = relaid.pieces[:: relaid.alike], [], 0
        for place, piece in pieces:
            rows = place.headers[piece].shape[0]
            if relaid.dim == 1:
                parts.append(place.read_rows(piece, start, stop))
            elif start < first + rows and first < stop:
                parts.append(place.read_rows(piece, max(start - first, 0), min(stop - first, rows)))
            first += rows
        joined = one_after_another(*parts, dim=relaid.dim)
        return joined if relaid.turned is None else relaid.turned(joined)

    def rename(self, names: dict[str, str]) -> None:
        """Calls every tensor by another name from here on."""
        self.tensors = {names[name]: relaid for name, relaid in self.tensors.items()}
        self.headers = {names[name]: tensor for name, tensor in self.headers.items()}

    def _joined(self, name: str, headers: bool = False) -> Tensor:
        relaid = self.tensors[name]
        pieces = [place.headers[piece] if headers else place.read(piece) for place, piece in relaid.pieces]
        try:
            return relaid.join(*pieces).contiguous()
        except RuntimeError as error:
            shapes = ", ".join(str(list(piece.shape)) for piece in pieces)
            stored = relaid.pieces[0][1]
            raise ConversionError(f"{stored!r} is {shapes} in the files, which does not fit params.json.") from error


def renamed(name: str, table: dict[str, str], kind: str) -> str:
    """transformers' name of a stored tensor, by a table of its words. Raises ConversionError for a word it has not."""
    words = [word if word.isdigit() else table.get(word) for word in name.split(".")]
    if None in words:
        raise ConversionError(f"{name!r} is no tensor of {kind} that is known: convert the layout of transformers.")
    return ".".join(filter(None, words))


def on_all_ranks(ranks: Sequence[StoredTensors]) -> list[str]:
    """The names of the tensors of some ranks, in order. Raises ConversionError for one that a rank lacks."""
    names = list(dict.fromkeys(name for rank in ranks for name in rank.headers))
    for name in names:
        if lacking := [number for number, rank in enumerate(ranks) if name not in rank.headers]:
            raise ConversionError(f"{name!r} is not in the file of rank {lacking[0]}: the checkpoint is incomplete.")
    return names


def to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of interleaved rotary pairs (2j, 2j + 1) in every head as half-split pairs (j, j + head_dim / 2)."""
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def one_after_another(*pieces: Tensor, dim: int = 0) -> Tensor:
    """The pieces of all ranks along one dimension."""
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]
