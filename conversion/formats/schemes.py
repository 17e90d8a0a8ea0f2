"""Which storage format a checkpoint says it has, wherever that is said, and its tensors decoded by the format's file.

Every file of this folder with `METHODS` (values of `quant_method`) and `find(checkpoint, scheme) -> Found` is a format.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint, read_json
from .stored import DecodedCheckpoint

# Files beside config.json in which some tools say how they packed the weights -> quant_method where it is not named.
SCHEME_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
KEYS = ("quantization_config", "compression_config")
_FOLDER = Path(__file__).parent


def formats() -> dict[str, Any]:
    """quant_method -> the module that reads it."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        if not path.stem.startswith("__"):
            module = import_module(f".{path.stem}", __package__)
            found |= dict.fromkeys(getattr(module, "METHODS", ()), module)
    return found


def scheme_of(raw: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
    """What says how the weights are packed, with its `quant_method`: in config.json, in the part of it about the text
    model, or in a file of its own; None where nothing does. Raises ConversionError for a scheme that is no object."""
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for key in KEYS:
            if part.get(key):
                scheme = part[key]
                if not isinstance(scheme, dict):
                    raise ConversionError(f"config.json has {key}={scheme!r}, which must be an object.")
                return {"quant_method": "an unnamed method"} | scheme
    for name, method in SCHEME_FILES.items() if folder is not None else ():
        if (folder / name).is_file():
            scheme = read_json(folder / name)
            inner = scheme.get("quantization")
            return {"quant_method": method} | (inner if isinstance(inner, dict) else scheme)
    return None


def without_scheme(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the same model with plain weights; `raw` itself where it says nothing of them."""
    if scheme_of(raw) is None:
        return raw

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in KEYS}

    return {key: plain(value) if isinstance(value, dict) else value for key, value in plain(raw).items()}


def is_readable(scheme: dict[str, Any]) -> bool:
    """Whether a file of this folder reads the scheme."""
    return scheme["quant_method"] in formats()


def decoded(
    checkpoint: Checkpoint, raw: dict[str, Any], dtype: torch.dtype | None = None
) -> Checkpoint | DecodedCheckpoint:
    """`checkpoint` as the tensors of its model: those that are packed in `dtype`, by default the one config.json names.

    Raises ConversionError for a scheme that is not known, and for tensors that are not as the scheme says.
    """
    scheme = scheme_of(raw, checkpoint.folder)
    if scheme is None:
        return checkpoint
    known, method = formats(), scheme["quant_method"]
    if method not in known:
        raise ConversionError(
            f"the checkpoint is quantised ({method}), which is not read here (known are {', '.join(sorted(known))}): "
            "dequantise it with the library that packed it and save it in a plain dtype."
        )
    found = known[method].find(checkpoint, scheme)
    if not found.tensors:
        raise ConversionError(
            f"config.json says that the checkpoint is quantised ({method}), but none of its tensors is stored so: "
            "remove quantization_config from it if the weights are plain."
        )
    return DecodedCheckpoint(checkpoint, found, dtype or declared_dtype(raw), method)


def declared_dtype(raw: dict[str, Any]) -> torch.dtype:
    """The dtype in which config.json says the model computes; bfloat16 where it does not."""
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        named = part.get("dtype") or part.get("torch_dtype")
        dtype = getattr(torch, str(named).removeprefix("torch."), None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
            return dtype
    return torch.bfloat16
