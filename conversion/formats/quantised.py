"""Weights stored as packed or rounded numbers, whose scales would be ignored: refused, wherever that is said."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import read_json

if TYPE_CHECKING:
    from ..engine.plan import Plan
    from ..engine.zoo_side import Expected

# Files beside config.json in which some tools say how they packed the weights.
SCHEMES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_KEYS = ("quantization_config", "compression_config")
_ADVICE = "load it with transformers, dequantise it and save it in a plain dtype."


def refuse_quantized_config(raw: dict[str, Any]) -> None:
    """Raises ConversionError where config.json, or the part of it about the text model, names a scheme."""
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for method in (part[key] for key in _KEYS if part.get(key)):
            name = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else method
            raise ConversionError(f"the checkpoint is quantised ({name}): {_ADVICE}")


def refuse_quantized_folder(folder: Path) -> None:
    """The same for a file of its own."""
    for name in SCHEMES:
        if (folder / name).is_file():
            scheme = read_json(folder / name)
            inner = scheme.get("quantization") if isinstance(scheme.get("quantization"), dict) else scheme
            method = inner.get("quant_algo") or inner.get("quant_method") or "an unnamed method"
            raise ConversionError(f"the checkpoint is quantised ({method}, says {name}): {_ADVICE}")


def refuse_quantized_tensors(plan: "Plan", expected: "Expected") -> None:
    """Raises ConversionError where tensors are stored as integers or in eight bits, whether or not scales are there."""
    source_of = {target: step.source_names()[0] for step in plan.steps for target in step.target_names()}
    lacks = any(name not in plan.outputs for name in expected.tensors)
    for name, tensor in plan.outputs.items():
        # A number that the model does not have says something only where the model lacks one.
        if name in expected.tensors or lacks:
            _refuse_packed(source_of[name], tensor)


def refuse_quantized_own(headers: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same for a zoo folder."""
    for name in headers.keys() & expected.keys():
        _refuse_packed(name, headers[name])


def _refuse_packed(name: str, tensor: Tensor) -> None:
    """Integers, or floats of eight bits, are no numbers to compute with."""
    if tensor.dtype is not torch.bool and (not tensor.dtype.is_floating_point or tensor.element_size() == 1):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ConversionError(
            f"the checkpoint is quantised, though its config.json does not say so ({name!r} is {dtype}): find out "
            f"how, and {_ADVICE}"
        )
