"""What zoo's own model expects: the tensors of a config, without allocating them, and what a mapping got wrong."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

from .checkpoint import Checkpoint
from .errors import ConversionError
from .plan import Plan, Planner
from .quantised import refuse_quantized_own

_NAMED_AT_MOST = 5


@dataclass
class Expected:
    """`tensors`: name -> meta tensor, in the model's order; `tied`: second name -> the name it shares."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]


def expected_tensors(config: ZooConfig) -> Expected:
    """The state dict of a ZooForCausalLM with this config, on the meta device."""
    model = _empty(config, torch.float32)
    first_name: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        primary = first_name.setdefault(id(parameter), name)
        if primary != name:
            tied[name] = primary
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return Expected(tensors, tied)


def own_dtypes(config: ZooConfig, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """{name: dtype} of the tensors that a ZooForCausalLM loaded in `dtype` keeps in another."""
    tensors = _empty(config, dtype).state_dict()
    return {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != dtype}


def _empty(config: ZooConfig, dtype: torch.dtype) -> ZooForCausalLM:
    with torch.device("meta"):
        return ZooForCausalLM._from_config(deepcopy(config), dtype=dtype)


def check_import(plan: Plan, expected: Expected, planner: Planner) -> None:
    """Every target of the plan is one the model has, in its shape, and none is lacking."""
    source_of = {target: step.source_names() for step in plan.steps for target in step.target_names()}
    known = set(expected.tensors) | set(expected.tied)
    if missing := [planner.their_names(name) for name in expected.tensors if name not in plan.outputs]:
        raise ConversionError(f"{_are(missing)} missing from the checkpoint: {_list(missing)}.")
    if extra := [name for target in plan.outputs if target not in known for name in source_of[target]]:
        raise ConversionError(
            f"the checkpoint holds {_count(extra)} that a model with this config does not have: {_list(extra)}."
        )
    for name, tensor in expected.tensors.items():
        if plan.outputs[name].shape != tensor.shape:
            raise ConversionError(
                f"tensor {' + '.join(map(repr, source_of[name][:2]))} has the wrong shape: zoo's {name!r} would be "
                f"{list(plan.outputs[name].shape)}, the config asks for {list(tensor.shape)}."
            )


def check_own(checkpoint: Checkpoint, expected: Expected) -> None:
    """A zoo folder holds exactly its model's tensors."""
    refuse_quantized_own(checkpoint.headers, expected.tensors)
    if missing := [name for name in expected.tensors if name not in checkpoint.headers]:
        raise ConversionError(f"{_are(missing)} missing from {checkpoint.folder}: {_list(missing)}.")
    if extra := [name for name in checkpoint.headers if name not in expected.tensors and name not in expected.tied]:
        raise ConversionError(
            f"{checkpoint.folder} holds {_count(extra)} that its config does not describe: {_list(extra)}."
        )
    for name, tensor in expected.tensors.items():
        found = checkpoint.headers[name]
        if found.shape != tensor.shape:
            raise ConversionError(f"tensor {name!r} is {list(found.shape)}, its config asks for {list(tensor.shape)}.")


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _are(names: list[str]) -> str:
    return f"{_count(names)} {'is' if len(names) == 1 else 'are'}"


def _list(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(repr(name) for name in names[:_NAMED_AT_MOST]) + more
