"""The stored tensors of a quantised checkpoint, kept beside the decoded ones so that they go back bit for bit.

`source/quantized.safetensors` has them; `quantized` of the manifest says the scheme, the places where it stood and the
dtype they were decoded to. Converted back, a weight that still is what its stored tensors stand for is written as they
are; another is encoded again in the same scheme, to the nearest.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint, StoredTensors, read_json
from ..files.sidecar import FOLDER, Manifest
from ..files.writer import copy_tensors
from ..layouts.gguf import GgufCheckpoint
from .schemes import KEYS, SCHEME_FILES, formats, scheme_of
from .stored import DecodedCheckpoint, Found

STEM = "quantized"
_PLAIN = "write plain weights with --dtype bfloat16 (dtype=)"


@dataclass
class KeptQuantized:
    """`found` of `checkpoint`: what its stored tensors stand for in `dtype`; `said`: the scheme and its places."""

    checkpoint: StoredTensors
    found: Found
    said: dict[str, Any]
    dtype: torch.dtype

    @property
    def method(self) -> str:
        return self.said["scheme"]["quant_method"]

    @property
    def chosen(self) -> frozenset[str]:
        """Names of the tensors that are stored in the scheme."""
        return frozenset(self.found.tensors)

    def headers(self, plain: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is written of a model with the tensors `plain`, as meta tensors. Raises ConversionError for a model that
        has no longer the tensors that were stored."""
        for name, stored in self.found.tensors.items():
            if name not in plain or tuple(plain[name].shape) != stored.shape:
                now = "is not in the model any more" if name not in plain else f"is {list(plain[name].shape)} by now"
                raise ConversionError(f"{name!r}, kept in {self.method}, {now}: {_PLAIN}.")
        written = {name: tensor for name, tensor in plain.items() if name not in self.found.tensors}
        return written | {name: self.checkpoint.headers[name] for name in sorted(self.found.taken())}

    def written(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor as it is stored."""
        for name, tensor in tensors:
            if name in self.found.tensors:
                yield from zip(self.found.tensors[name].names, self._stored(name, tensor), strict=True)
            else:
                yield name, tensor

    def stands_for(self, name: str, rows: Callable[[int, int], Tensor], at_once: int) -> bool:
        """Whether a weight, of which `rows` gives some, is what its stored tensors stand for: compared some `at_once`
        bytes at a time."""
        stored, decoded = self.found.tensors[name], DecodedCheckpoint(self.checkpoint, self.found, self.dtype, "")
        if stored.rows is None:
            return False
        row = decoded.headers[name][0].numel() * self.dtype.itemsize
        step = max(1, at_once // max(1, row * stored.unit)) * stored.unit
        for start in range(0, stored.shape[0], step):
            part = rows(start, min(start + step, stored.shape[0]))
            if not _same(decoded.read_rows(name, start, start + len(part)).to(part.dtype), part):
                return False
        return True

    def unused(self) -> Iterator[tuple[str, Tensor]]:
        """What was stored beside the weights, such as scales of activations."""
        for name in sorted(self.found.unused):
            yield name, self.checkpoint.read(name)

    def _stored(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        stored = self.found.tensors[name]
        parts = tuple(self.checkpoint.read(part) for part in stored.names)
        dtypes = dict.fromkeys((self.dtype, tensor.dtype))
        if any(_same(stored.decode(dtype, *parts).to(tensor.dtype), tensor) for dtype in dtypes):
            return parts
        try:
            return stored.encode(tensor, *parts)
        except ConversionError as error:
            raise ConversionError(f"{name!r} cannot be stored in {self.method}: {error}") from error

    def say(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """config.json with the scheme where it stood; what stood in a file of its own is written into `folder`. Raises
        ConversionError for a place that config.json has not."""
        raw = deepcopy(raw)
        for place, keys in self.said["places"].items():
            part = raw.get(place) if place else raw
            if not isinstance(part, dict):
                raise ConversionError(
                    f"{FOLDER}/manifest.json puts the scheme into {place!r}, which config.json has not."
                )
            part.update(deepcopy(keys))
        for name, content in self.said["files"].items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return raw


def of_source(checkpoint: StoredTensors | DecodedCheckpoint, raw: dict[str, Any], dtype: torch.dtype) -> KeptQuantized:
    """What a checkpoint stores; raises ConversionError for plain weights."""
    if isinstance(checkpoint, GgufCheckpoint):
        raise ConversionError(
            f"{checkpoint.folder} is GGUF, which is read and not written here: keep the file itself, and leave out "
            "--keep-quantized (keep_quantized=)."
        )
    if not isinstance(checkpoint, DecodedCheckpoint):
        raise ConversionError(
            f"the weights in {checkpoint.folder} are not quantised: leave out --keep-quantized (keep_quantized=)."
        )
    parts = {"": raw} | {name: value for name, value in raw.items() if isinstance(value, dict) and name not in KEYS}
    places = {place: {key: part[key] for key in KEYS if part.get(key)} for place, part in parts.items()}
    folder = checkpoint.folder
    files = {name: read_json(folder / name) for name in SCHEME_FILES if (folder / name).is_file()}
    said = {"scheme": scheme_of(raw, folder), "places": {k: v for k, v in places.items() if v}, "files": files}
    return KeptQuantized(checkpoint.checkpoint, checkpoint.found, said, dtype)


def write(kept: KeptQuantized, folder: Path, max_bytes: int) -> dict[str, Any]:
    """Writes the stored tensors into `source/` of a folder -> `quantized` of its manifest."""
    headers = {name: kept.checkpoint.headers[name] for name in sorted(kept.found.taken())}
    (folder / FOLDER).mkdir(exist_ok=True)
    copy_tensors(headers, kept.checkpoint, folder / FOLDER, max_bytes, STEM)
    return kept.said | {"dtype": str(kept.dtype).removeprefix("torch."), "tensors": len(headers)}


def of_folder(folder: Path, manifest: Manifest) -> KeptQuantized | None:
    """What `source/` of a folder keeps; None where nothing was kept or it has been lost. Raises ConversionError where
    the manifest does not describe it, or some of the tensors are gone."""
    aside, said = folder / FOLDER, manifest.quantized
    there = (aside / f"{STEM}.safetensors").exists() or (aside / f"{STEM}.safetensors.index.json").exists()
    if said is None or not there:
        return None
    try:
        scheme, dtype = said["scheme"], getattr(torch, said["dtype"])
        find = formats()[scheme["quant_method"]].find
        kept = {part: dict(said[part]) for part in ("places", "files")}
        keys = {key for place in kept["places"].values() for key in dict(place)}
        nowhere = not keys and not kept["files"]
        if nowhere or not dtype.is_floating_point or keys - set(KEYS) or kept["files"].keys() - SCHEME_FILES.keys():
            raise ValueError("a scheme has other keys, files and dtypes")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConversionError(
            f"{FOLDER}/manifest.json describes wrongly what was kept `quantized`: {error}."
        ) from error
    checkpoint = Checkpoint(aside, STEM)
    found = find(checkpoint, scheme)
    if (count := len(found.taken())) != said.get("tensors"):
        raise ConversionError(
            f"{aside} holds {count} of the {said.get('tensors')} stored tensors that it kept: copy the folder again, "
            f"or {_PLAIN}."
        )
    return KeptQuantized(checkpoint, found, kept | {"scheme": scheme}, dtype)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*as_bytes)
