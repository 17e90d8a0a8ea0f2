"""Packed or rounded numbers that no scheme accounts for: refused, since their scales would be ignored."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConversionError
from .schemes import scheme_of

if TYPE_CHECKING:
    from ..engine.plan import Plan
    from ..engine.zoo_side import Expected

_ADVICE = "load it with transformers, dequantise it and save it in a plain dtype."


def refuse_quantized_config(raw: dict[str, Any]) -> None:
    """Raises ConversionError where config.json of a zoo folder, or a part of it, names a scheme."""
    if scheme := scheme_of(raw):
        raise ConversionError(f"the checkpoint is quantised ({scheme['quant_method']}): {_ADVICE}")


def refuse_quantized_tensors(plan: "Plan", expected: "Expected") -> None:
    """Raises ConversionError where tensors are stored as integers or in eight bits, whether or not scales are there."""
    source_of = {target: step.source_names()[0] for step in plan.steps for target in step.target_names()}
    lacks = any(name not in plan.outputs for name in expected.tensors)
    for name, tensor in plan.outputs.items():
        # A number that the model does not have says something only where the model lacks one.
        if (name in expected.tensors or lacks) and not _is_table(expected.tensors.get(name)):
            _refuse_packed(source_of[name], tensor)


def refuse_quantized_own(headers: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same for a zoo folder."""
    for name in headers.keys() & expected.keys():
        if not _is_table(expected[name]):
            _refuse_packed(name, headers[name])


def _is_table(tensor: Tensor | None) -> bool:
    """Whether a tensor of the model is one of whole numbers, which say which and not how much."""
    return tensor is not None and tensor.dtype is torch.long


def _refuse_packed(name: str, tensor: Tensor) -> None:
    """Integers, or floats of eight bits, are no numbers to compute with."""
    if tensor.dtype is not torch.bool and (not tensor.dtype.is_floating_point or tensor.element_size() == 1):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ConversionError(
            f"the checkpoint is quantised, though its config.json does not say so ({name!r} is {dtype}): find out "
            f"how, and {_ADVICE}"
        )
