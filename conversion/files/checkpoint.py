"""Reading a folder of safetensors: headers first, one tensor at a time afterwards, nothing outside the folder."""

import ctypes
import json
import os
from io import RawIOBase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ConversionError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}  # fmt: skip


class WholeTensors:
    """What is asked of tensors that are read whole: `read(name)` gives one, and nothing less of it is in memory."""

    def place(self, name: str) -> tuple[Path, int] | None:
        """The file in which the bytes of a tensor lie as they are, and where they begin; None where they do not."""
        return None

    def cut(self, name: str) -> int:
        """Of how many numbers the parts must be multiples in which a tensor can be read; 0: only whole."""
        return 0

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        """Its numbers from `start` to `stop`, in one dimension."""
        return self.read(name).reshape(-1)[start:stop]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a tensor along its first dimension."""
        return self.read(name)[start:stop]

    def read_columns(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a matrix along its second dimension."""
        return self.read(name)[:, start:stop]


class RowTensors(WholeTensors):
    """What is asked of tensors of which some rows can be read: `headers`, `read_rows(name, start, stop)`, and
    `unit(name)`, of how many rows `start` must be a multiple; 0: only whole."""

    headers: dict[str, Tensor]

    def unit(self, name: str) -> int:
        raise NotImplementedError

    def cut(self, name: str) -> int:
        return self.unit(name) * self.headers[name].shape[1:].numel()

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        row = self.headers[name].shape[1:].numel()
        first = start // row
        return self.read_rows(name, first, -(-stop // row)).reshape(-1)[start - first * row : stop - first * row]


class StoredTensors(WholeTensors):
    """Tensors of some files of a folder: `headers` (name -> meta tensor) at once, `read(name)` when needed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.headers: dict[str, Tensor] = {}
        self._file_of: dict[str, Path] = {}
        self._start_of: dict[str, int] = {}
        self._name_in_file: dict[str, str] = {}

    def shards(self, index: Path) -> tuple[dict[str, str], dict[str, Path]]:
        """What an index says: {tensor: file name}, and {file name: path}, of which none leads out of the folder. Raises
        ConversionError for an index that is damaged or names files outside of the folder."""
        weight_map = read_json(inside(self.folder, index.name)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ConversionError(f"{index} has no weight_map from tensor names to file names.")
        return weight_map, {file: inside(self.folder, file) for file in dict.fromkeys(weight_map.values())}

    def read_index(self, index: Path) -> None:
        """Reads the headers of the shards an index names; raises ConversionError where they disagree with it."""
        weight_map, paths = self.shards(index)
        for file, path in paths.items():
            if not path.is_file():
                raise ConversionError(f"{index} names {file!r}, which is not in the folder: a shard is missing.")
        for path in paths.values():
            self.read_headers(path)
        for name, file in weight_map.items():
            if self._file_of.get(name) != paths[file]:
                raise ConversionError(f"{index} says that {name!r} is in {file!r}, but it is not there.")
        for name, path in self._file_of.items():
            if name not in weight_map:
                raise ConversionError(f"{path.name!r} holds {name!r}, which {index} does not list.")

    def read_headers(self, path: Path) -> None:
        """Reads the header of one file; raises ConversionError for a tensor that another file holds too, or of an
        unknown dtype."""
        for name, entry in _header_of(path).items():
            if name in self.headers:
                raise ConversionError(f"{name!r} is in two files, {self._file_of[name].name!r} and {path.name!r}.")
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None:
                raise ConversionError(f"{name!r} in {path} has dtype {entry['dtype']}, which torch does not know.")
            self.headers[name] = torch.empty(entry["shape"], dtype=dtype, device="meta")
            self._file_of[name], self._start_of[name] = path, entry["start"]

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU, in memory of its own: mapping the file would keep all of it resident. Raises
        ConversionError for a file that was changed meanwhile."""
        return self._read(name, 0, self.headers[name].shape)

    def place(self, name: str) -> tuple[Path, int] | None:
        return self._file_of[name], self._start_of[name]

    def cut(self, name: str) -> int:
        return 1

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        return self._read(name, start, (stop - start,))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        entry = self.headers[name].shape[1:]
        return self._read(name, start * entry.numel(), (stop - start, *entry))

    def read_columns(self, name: str, start: int, stop: int) -> Tensor:
        header = self.headers[name]
        rows, columns = header.shape
        tensor = torch.empty(rows, stop - start, dtype=header.dtype)
        memory, length = memoryview(raw_bytes(tensor)), (stop - start) * header.element_size()
        with open(self._file_of[name], "rb", buffering=0) as file:
            for row in range(rows):
                file.seek(self._start_of[name] + (row * columns + start) * header.element_size())
                self._fill(file, memory[row * length : (row + 1) * length], name)
        return tensor

    def _read(self, name: str, first: int, shape: tuple[int, ...]) -> Tensor:
        """As many numbers as `shape` has, from number `first` of a tensor on."""
        header = self.headers[name]
        tensor = torch.empty(shape, dtype=header.dtype)
        with open(self._file_of[name], "rb", buffering=0) as file:
            file.seek(self._start_of[name] + first * header.element_size())
            self._fill(file, memoryview(raw_bytes(tensor)), name)
        return tensor

    def _fill(self, file: RawIOBase, memory: memoryview, name: str) -> None:
        """Reads as many bytes as there is memory for."""
        while memory:
            count = file.readinto(memory)
            if not count:
                raise ConversionError(f"{self._file_of[name]} ended inside {name!r}: it was changed while being read.")
            memory = memory[count:]

    def rename(self, names: dict[str, str]) -> None:
        """Calls every tensor by another name from here on."""
        for place in (self.headers, self._file_of, self._start_of, self._name_in_file):
            renamed = {names[name]: value for name, value in place.items()}
            place.clear()
            place.update(renamed)

    def holds_the_same(self, other: "StoredTensors") -> bool:
        """Whether both have the same tensors, to the bit."""
        shapes = [{name: (t.dtype, t.shape) for name, t in one.headers.items()} for one in (self, other)]
        return shapes[0] == shapes[1] and all(
            self._file_of[name] == other._file_of[name]
            or torch.equal(*(one.read(name).reshape(-1).view(torch.uint8) for one in (self, other)))
            for name in self.headers
        )


class Checkpoint(StoredTensors):
    """The weights of a folder. Of the files it may hold, those that transformers would load: `named`
    (`transformers_weights` of config.json), else `model.safetensors`, else the shards of the index.
    Raises ConversionError where there are none, or two sets that differ."""

    def __init__(self, folder: Path, stem: str = "model", named: str | None = None):
        super().__init__(folder)
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if named is not None:
            chosen = inside(folder, named)
            self.read_index(chosen) if named.endswith(".index.json") else self.read_headers(chosen)
        elif is_there(whole):
            self.read_headers(inside(folder, whole.name))
            if is_there(index):
                self._refuse_another_set(whole, index)
        elif is_there(index):
            self.read_index(index)
        else:
            raise ConversionError(_no_weights(folder))

    def _refuse_another_set(self, whole: Path, index: Path) -> None:
        """An index beside the one file is a leftover where its shards are gone or hold the same; else it is unknown
        which was saved last, and transformers would load the one file without a word."""
        other = StoredTensors(self.folder)
        _, paths = other.shards(index)
        if not all(path.is_file() for path in paths.values()):
            return
        other.read_index(index)
        if not self.holds_the_same(other):
            raise ConversionError(
                f"{self.folder} holds two sets of weights that differ, {whole.name!r} (which transformers loads) and "
                f"the shards of {index.name!r}: remove the one that is not meant."
            )


def raw_bytes(tensor: Tensor) -> ctypes.Array:
    """The memory of a contiguous CPU tensor as bytes, not copied."""
    return (ctypes.c_ubyte * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())


def _header_of(path: Path) -> dict[str, dict]:
    """name -> dtype, shape and start in the file; the format's own library has judged the file sound before."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConversionError(f"{path} is unreadable ({reason}): allow reading it, or copy it here again.") from error
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).removesuffix(".")
        raise ConversionError(f"{path} is cut off or damaged ({reason}): download or copy it again.") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: entry | {"start": 8 + size + entry["data_offsets"][0]} for name, entry in header.items()}


def has_weights(folder: Path) -> bool:
    """Whether a model folder has weights, or what should be them."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def is_there(path: Path) -> bool:
    """Whether a file is there; what has its name and is none (a pipe, a device, a link to nothing) is refused."""
    if not path.is_file() and os.path.lexists(path):
        raise ConversionError(f"{path} is no file that can be read: put the file itself there.")
    return path.is_file()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when it, or the link it is, leaves the folder (a Hub cache's own blobs excepted)."""
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"{folder / name} is a link that leads to itself: put the file there.") from error
    snapshots = (place for place in root.parents if place.name == "snapshots" and "--" in place.parent.name)
    allowed = [root, *(place.parent / "blobs" for place in snapshots)]
    if not any(path.is_relative_to(one) for one in allowed):
        raise ConversionError(f"{folder} refers to {name!r}, which leads out of the folder: refused.")
    return folder / name


def read_json(path: Path) -> dict:
    """A JSON object from a file; anything else is an error that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as JSON: {error}.") from error
    except RecursionError as error:
        raise ConversionError(f"{path} is nested deeper than any file of a model: it cannot be read.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds {type(content).__name__}, expected an object.")
    return content


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        return (
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened: get its safetensors "
            "version (often on a branch or in a pull request of the repository), or convert what you trust with "
            "--allow-pickle (allow_pickle=True), which reads tensors and nothing else."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (found {', '.join(others[:3])}, which no index lists)" if others else ""
    return f"{folder} has neither {WEIGHTS} nor {INDEX}{found}: there are no weights to read."
