"""What only the source knows and zoo cannot hold, kept in the folder `source/` so that converting back loses nothing.

`source/manifest.json`: model_type; `tied`, second names under which the source stored a shared tensor; `unshared`, the
first names that it left out for them; `overrides`, config fields in which the tensors contradict their config.json;
`names`, its tensors, where the rules alone would name them differently; `kept` and `dropped`; `cast`; `repository` and
`revision` of the Hub and `stored_as`, where it came from; `quantized`, the scheme of weights whose stored tensors are
kept in `source/quantized.safetensors`; `tokenizer_class`, where tokenizer_config.json names another or none.
`source/tensors.safetensors`: the tensors set aside. Nothing loads this folder, and engines that read every safetensors
file of a model folder do not look into it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from modeling_zoo.platform_saving import SOURCE_FOLDER

from ..errors import ConversionError, one_line
from .checkpoint import DTYPES, Checkpoint, read_json

FOLDER, MANIFEST, STEM = SOURCE_FOLDER, "manifest.json", "tensors"


@strict
@dataclass
class Manifest:
    """The contents of manifest.json; an empty one stands for a model that came from nowhere."""

    model_type: str | None = None
    tied: list[str] = field(default_factory=list)
    unshared: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    names: dict[str, list] | None = None  # name -> [dtype, shape]
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    cast: str | None = None  # the dtype its tensors were cast to
    repository: str | None = None  # of the Hub, from which it was converted
    revision: str | None = None  # the commit there
    stored_as: str | None = None  # the format of its weights, where they were packed
    quantized: dict[str, Any] | None = None  # the scheme whose stored tensors are kept
    tokenizer_class: str | None = None  # as written into tokenizer_config.json

    def write(self, folder: Path) -> None:
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest in a folder; raises ConversionError for one that cannot be read."""
        path = folder / FOLDER / MANIFEST
        if not path.is_file():
            return cls()
        try:
            return cls(**read_json(path))
        except (TypeError, StrictDataclassError) as error:
            raise ConversionError(f"{path} is not a manifest this version understands: {one_line(error)}") from error

    def headers(self) -> dict[str, Tensor]:
        """The source's tensors, on the meta device. Raises ConversionError for an entry that describes no tensor."""
        try:
            return {
                name: torch.empty(shape, dtype=DTYPES[dtype], device="meta")
                for name, (dtype, shape) in self.names.items()
            }
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise ConversionError(
                f"{FOLDER}/{MANIFEST} describes a tensor in `names` wrongly: {one_line(error)}"
            ) from error


def set_aside(folder: Path) -> Checkpoint | None:
    """The tensors that were set aside, None if there are none."""
    aside = folder / FOLDER
    has_any = (aside / f"{STEM}.safetensors").exists() or (aside / f"{STEM}.safetensors.index.json").exists()
    return Checkpoint(aside, STEM) if has_any else None
