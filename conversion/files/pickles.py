"""Pickles, which can run code when they are opened: opened where the reader has allowed it and for tensors alone, never
copied along."""

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError, one_line
from .checkpoint import INDEX, WEIGHTS, StoredTensors, inside, is_there

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
PICKLED_WEIGHTS, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# The system keeps in memory what was read of a mapped file; after so many bytes the mapping is made again.
_REMAP = 2**29
_ARCHIVE = b"PK\x03\x04"
_PROTOCOLS = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_FOREIGN = re.compile(r"[Uu]nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]*\w)")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive as torch saves it, by its name or its first bytes."""
    if any(fnmatch(path.name.lower(), pattern) for pattern in PICKLED):
        return True
    with open(path, "rb") as file:
        return file.read(4).startswith((_ARCHIVE, *_PROTOCOLS))


def pickles_of(folder: Path) -> list[Path]:
    """The pickles that are a folder's weights, where it has no safetensors: one file, or the shards of an index."""
    if any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        return []
    if (folder / PICKLED_WEIGHTS).exists():
        return [folder / PICKLED_WEIGHTS]
    if (folder / PICKLED_INDEX).exists():
        return [path for path in StoredTensors(folder).shards(folder / PICKLED_INDEX)[1].values() if path.exists()]
    return []


class PickledTensors(StoredTensors):
    """Tensors of pickled files. torch's unpickler for weights builds tensors and nothing else. The files are mapped:
    what is in memory is the tensor that is read. Files from before torch 1.6 cannot be mapped: one is in memory whole.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._open: tuple[Path, dict[str, Tensor]] | None = None
        self._seen = 0

    def read_headers(self, path: Path) -> None:
        """Reads what one file holds; raises ConversionError for a tensor that another file holds too."""
        for name, tensor in self._tensors(inside(self.folder, path.name)).items():
            if name in self.headers:
                raise ConversionError(f"{name!r} is in two files, {self._file_of[name].name!r} and {path.name!r}.")
            self.headers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            self._file_of[name] = path
            self._start_of[name] = 0
            self._name_in_file[name] = name

    def place(self, name: str) -> tuple[Path, int] | None:
        return None

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU, in memory of its own."""
        return self._copied(self._mapped(name))

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        mapped = self._mapped(name)
        return (
            self._copied(mapped.view(-1)[start:stop])
            if mapped.is_contiguous()
            else self.read(name).view(-1)[start:stop]
        )

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._copied(self._mapped(name)[start:stop])

    def read_columns(self, name: str, start: int, stop: int) -> Tensor:
        return self._copied(self._mapped(name)[:, start:stop])

    def _mapped(self, name: str) -> Tensor:
        return self._tensors(self._file_of[name])[self._name_in_file[name]]

    def _copied(self, mapped: Tensor) -> Tensor:
        tensor = torch.empty(mapped.shape, dtype=mapped.dtype).copy_(mapped)
        self._seen += tensor.numel() * tensor.element_size()
        return tensor

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        if self._open is None or self._open[0] != path or self._seen > _REMAP:
            self._open, self._seen = None, 0
            self._open = path, unpickled(path)
        return self._open[1]


def unpickled(path: Path) -> dict[str, Tensor]:
    """{name: tensor, mapped where the file allows it}; raises ConversionError for a file that holds anything else."""
    if not is_there(path):
        raise ConversionError(f"{path} is missing.")
    try:
        content = _load(path)
    except Exception as error:  # whatever a damaged pickle makes the unpickler stumble over
        raise ConversionError(_why(path, error)) from error
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds {type(content).__name__}, expected tensors by name.")
    for name, tensor in content.items():
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_quantized
        if not isinstance(name, str) or not plain:
            kind = type(tensor).__name__
            raise ConversionError(f"{path} holds {name!r}, which is {kind}: only plain tensors by name are read.")
    return {name: tensor.detach() for name, tensor in content.items()}


def _load(path: Path) -> Any:
    with open(path, "rb") as file:
        mapped = file.read(4) == _ARCHIVE
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _why(path: Path, error: Exception) -> str:
    """What torch says over many lines, and with advice that is not ours, in one sentence."""
    if found := _FOREIGN.search(str(error)):
        return f"{path} asks for {found[1]} to be run when it is opened: refused, since weights need no code."
    reason = one_line(error).split(". ")[0]
    if "Weights only load failed" in str(error):
        reason = "it holds more than tensors"
    return f"{path} cannot be read as pickled tensors ({reason[:200]}): download or copy it again."
