"""The weights of a folder in whatever layout: transformers' own (safetensors, or allowed pickles) or a publisher's."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint, StoredTensors, has_weights
from ..files.pickles import PICKLED_INDEX, PICKLED_WEIGHTS, PickledTensors, pickles_of
from . import deepseek_inference, gguf, params
from .relaid import RelaidCheckpoint

# Each has `recognises(folder)`, `config(folder)`, `weights(folder, allow_pickle, dtype)` and `stored(folder)`.
LAYOUTS = (deepseek_inference, gguf, params)


def layout_of(folder: Path) -> ModuleType | None:
    """The layout of a folder; None where it is transformers' own."""
    return next((layout for layout in LAYOUTS if layout.recognises(folder)), None)


def open_weights(
    folder: Path, raw: dict[str, Any], allow_pickle: bool = False, dtype: torch.dtype | None = None
) -> StoredTensors | RelaidCheckpoint | gguf.GgufCheckpoint:
    """The tensors of a folder whose config.json is `raw`. Pickles are opened with `allow_pickle` alone, and where there
    are no safetensors; what a layout packs itself is decoded in `dtype`, by default the one config.json names. Raises
    ConversionError where there are no weights, or the files are incomplete."""
    if layout := layout_of(folder):
        return layout.weights(folder, allow_pickle, dtype)
    named = raw.get("transformers_weights")
    if named is None and allow_pickle and not has_weights(folder) and pickles_of(folder):
        pickled = PickledTensors(folder)
        if (folder / PICKLED_WEIGHTS).exists():
            pickled.read_headers(folder / PICKLED_WEIGHTS)
        else:
            pickled.read_index(folder / PICKLED_INDEX)
        if not pickled.headers:
            raise ConversionError(f"{folder} has pickles without a tensor in them.")
        return pickled
    return Checkpoint(folder, named=named)


def write_tokenizer(folder: Path, target: Path) -> bool:
    """Writes a tokenizer that is inside the weights into `target`; False where there is one that is not read."""
    return not gguf.recognises(folder) or gguf.write_tokenizer(folder, target)
