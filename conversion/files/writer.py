"""Writing safetensors whose headers are known before the first tensor: each tensor goes straight to its place."""

import json
import re
from pathlib import Path

from torch import Tensor

from ..errors import ConversionError
from .bytes import copy_bytes, write_numbers
from .checkpoint import DTYPES, WholeTensors, raw_bytes

CODES = {dtype: code for code, dtype in DTYPES.items()}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: int | str) -> int:
    """Bytes of 5000, "5GB" or "500MiB". Raises ConversionError for any other text."""
    if isinstance(size, int) and size > 0:
        return size
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?I?B)?\s*", str(size).upper())
    if not found or (found[2] or "") not in _UNITS or int(found[1]) == 0:
        raise ConversionError(f"max_shard_size={size!r} is not a size: write for example 5GB or 500MB.")
    return int(found[1]) * _UNITS[found[2] or ""]


def describe(tensor: Tensor) -> str:
    """`float32 [3, 4]`"""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class ShardWriter:
    """Lays out `tensors` (name -> meta tensor) over shards of at most `max_bytes`, then takes them in any order."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor], max_bytes: int, stem: str = "model"):
        self.folder, self.stem, self.tensors = folder, stem, tensors
        self._place: dict[str, tuple[Path, int, int]] = {}  # with the bytes that are to come
        shards = self._shards(max_bytes)
        self.files = [self._file_name(number, len(shards)) for number in range(len(shards))]
        self.weight_map = {name: file for file, names in zip(self.files, shards, strict=True) for name in names}
        for file, names in zip(self.files, shards, strict=True):
            self._create(folder / file, names)

    def _shards(self, max_bytes: int) -> list[list[str]]:
        shards, size = [[]], 0
        for name, tensor in self.tensors.items():
            if shards[-1] and size + nbytes(tensor) > max_bytes:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += nbytes(tensor)
        return shards

    def _file_name(self, number: int, count: int) -> str:
        part = "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"
        return f"{self.stem}{part}.safetensors"

    def _create(self, path: Path, names: list[str]) -> None:
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        # Wide elements first: readers need aligned offsets, and the format allows no gaps.
        for name in sorted(names, key=lambda name: -self.tensors[name].element_size()):
            tensor = self.tensors[name]
            end = offset + nbytes(tensor)
            header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for name in names:
            start, end = header[name]["data_offsets"]
            self._place[name] = path, 8 + len(text) + start, end - start
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)

    def write(self, name: str, tensor: Tensor) -> None:
        """Puts one tensor in its place; it must be the one that was announced, and come once. Raises ConversionError
        otherwise."""
        planned = self._planned(name)
        if describe(tensor) != describe(planned):
            raise ConversionError(f"{name!r} came out as {describe(tensor)}, planned was {describe(planned)}.")
        self.write_part(name, 0, tensor)

    def write_part(self, name: str, first: int, tensor: Tensor) -> None:
        """Puts the numbers of a tensor from number `first` on in their place. Raises ConversionError for those that
        were not announced."""
        planned = self._planned(name)
        if tensor.dtype != planned.dtype:
            raise ConversionError(f"{name!r} came out as {describe(tensor)}, planned was {describe(planned)}.")
        path, offset = self._place_of(name, first * tensor.element_size(), nbytes(tensor))
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.numel():
            with open(path, "r+b", buffering=0) as file:
                write_numbers(file, offset, raw_bytes(tensor))

    def copy(self, name: str, first: int, source: Path, start: int, count: int) -> None:
        """Puts `count` bytes of a file, from `start` on, where the bytes of a tensor from `first` on belong. Raises
        ConversionError for those that were not announced, or a file that ends before."""
        path, offset = self._place_of(name, first, count)
        with open(source, "rb", buffering=0) as one, open(path, "r+b", buffering=0) as other:
            copy_bytes(one, start, other, offset, count)

    def _planned(self, name: str) -> Tensor:
        if name not in self._place:
            raise ConversionError(f"{name!r} was produced twice, or was never planned.")
        return self.tensors[name]

    def _place_of(self, name: str, first: int, count: int) -> tuple[Path, int]:
        """Where bytes of a tensor belong, which are counted: with the last of them it is complete."""
        planned = self._planned(name)
        path, offset, missing = self._place[name]
        if count > missing or first + count > nbytes(planned):
            raise ConversionError(f"{name!r} came out larger than {describe(planned)}, which was planned.")
        self._place[name] = path, offset, missing - count
        if missing == count:
            del self._place[name]
        return path, offset + first

    def finish(self) -> None:
        """Checks that every tensor has come and writes the index of a sharded checkpoint. Raises ConversionError for
        tensors that are missing."""
        if self._place:
            raise ConversionError(f"{len(self._place)} tensors were never produced, first {min(self._place)!r}.")
        if len(self.files) == 1:
            return
        total = sum(nbytes(tensor) for tensor in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": self.weight_map}
        (self.folder / f"{self.stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def copy_tensors(
    tensors: dict[str, Tensor], checkpoint: WholeTensors, folder: Path, max_bytes: int, stem: str = "model"
) -> None:
    """Writes tensors of a checkpoint into a folder as they are."""
    writer = ShardWriter(folder, tensors, max_bytes, stem)
    for name in tensors:
        copy_tensor(writer, checkpoint, name)
    writer.finish()


def copy_tensor(writer: ShardWriter, checkpoint: WholeTensors, name: str) -> None:
    """Writes one tensor of a checkpoint, as bytes where its files have it as it is."""
    place = checkpoint.place(name)
    if place is None:
        writer.write(name, checkpoint.read(name))
    else:
        writer.copy(name, 0, *place, nbytes(writer.tensors[name]))
