"""Reading a folder of safetensors: headers first, one tensor at a time afterwards, nothing outside the folder."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ConversionError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OPEN_FILES = 8

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}  # fmt: skip


class Checkpoint:
    """The tensors of a folder: `headers` (name -> meta tensor) at once, `read(name)` when needed."""

    def __init__(self, folder: Path, stem: str = "model"):
        self.folder = folder
        self.headers: dict[str, Tensor] = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        index = folder / f"{stem}.safetensors.index.json"
        if index.exists():
            self._read_index(index)
        elif (folder / f"{stem}.safetensors").exists():
            self._read_headers(inside(folder, f"{stem}.safetensors"))
        else:
            raise ConversionError(_no_weights(folder))

    def _read_index(self, index: Path) -> None:
        weight_map = read_json(inside(self.folder, index.name)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ConversionError(f"{index} has no weight_map from tensor names to file names.")
        paths = {file: inside(self.folder, file) for file in dict.fromkeys(weight_map.values())}
        for file, path in paths.items():
            if not path.is_file():
                raise ConversionError(f"{index} names {file!r}, which is not in the folder: a shard is missing.")
        for path in paths.values():
            self._read_headers(path)
        for name, file in weight_map.items():
            if self._file_of.get(name) != paths[file]:
                raise ConversionError(f"{index} says that {name!r} is in {file!r}, but it is not there.")
        for name, path in self._file_of.items():
            if name not in weight_map:
                raise ConversionError(f"{path.name!r} holds {name!r}, which {index} does not list.")

    def _read_headers(self, path: Path) -> None:
        file = self._file(path)
        for name in file.keys():
            if name in self.headers:
                raise ConversionError(f"{name!r} is in two files, {self._file_of[name].name!r} and {path.name!r}.")
            entry = file.get_slice(name)
            dtype = DTYPES.get(entry.get_dtype())
            if dtype is None:
                raise ConversionError(f"{name!r} in {path} has dtype {entry.get_dtype()}, which torch does not know.")
            self.headers[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
            self._file_of[name] = path

    def _file(self, path: Path):
        if path not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, ValueError, OSError) as error:
                raise ConversionError(f"{path} is cut off or damaged: {error}.") from error
        return self._open[path]

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        return self._file(self._file_of[name]).get_tensor(name)


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when it, or the link it is, leaves the folder (a Hub cache's own blobs excepted)."""
    root, path = folder.resolve(), (folder / name).resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.is_relative_to(one) for one in allowed):
        raise ConversionError(f"{folder} refers to {name!r}, which leads out of the folder: refused.")
    return folder / name


def read_json(path: Path) -> dict:
    """A JSON object from a file; anything else is an error that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds {type(content).__name__}, expected an object.")
    return content


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return (
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened and are never read "
            "here: get its safetensors version (often on a branch or in a pull request of the repository), or load it "
            "with transformers where that is safe and call save_pretrained."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (found {', '.join(others[:3])}, which no index lists)" if others else ""
    return f"{folder} has neither {WEIGHTS} nor {INDEX}{found}: there are no weights to read."
