"""What zoo's own model expects: the tensors of a config, without allocating them, and what a mapping got wrong."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from description_zoo.heads import BODY, head_of_own, model_class

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint
from ..formats.quantised import refuse_quantized_own
from .plan import Plan, Planner

_NAMED_AT_MOST = 5
# Where the body stands in a model with a head.
BODY_PREFIX = "model."


@dataclass
class Expected:
    """`tensors`: name -> meta tensor, in the model's order; `tied`: second name -> the name it shares; `parameters`:
    how many numbers are learned, those of buffers left out.

    The names are those within a model with a head; a `body` alone is stored without their beginning.
    """

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    parameters: int
    body: bool = False

    def stored(self, name: str) -> str:
        """The name in the files."""
        return name.removeprefix(BODY_PREFIX) if self.body else name

    def as_stored(self, headers: dict[str, Tensor]) -> dict[str, str]:
        """{name: name in the files} of a zoo folder's tensors."""
        short = self.body and not any(name.startswith(BODY_PREFIX) for name in headers)
        return {BODY_PREFIX + name if short else name: name for name in headers}


def expected_tensors(config: ZooConfig) -> Expected:
    """The state dict of a model with this config, on the meta device."""
    model, body = empty_model(config), head_of_own(config) == BODY
    first_name: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        primary = first_name.setdefault(id(parameter), name)
        if primary != name:
            tied[name] = primary
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if body:
        return Expected({BODY_PREFIX + name: tensor for name, tensor in tensors.items()}, {}, parameters, body=True)
    return Expected(tensors, tied, parameters)


def own_dtypes(config: ZooConfig, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """{name: dtype} of the tensors that a model loaded in `dtype` keeps in another."""
    prefix = BODY_PREFIX if head_of_own(config) == BODY else ""
    tensors = empty_model(config, dtype).state_dict()
    return {prefix + name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != dtype}


def empty_model(config: ZooConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of this config on the meta device."""
    with torch.device("meta"):
        return model_class(config)._from_config(deepcopy(config), dtype=dtype)


def check_import(plan: Plan, expected: Expected, planner: Planner) -> None:
    """Every target of the plan is one the model has, in its shape, and none is lacking. Raises ConversionError
    otherwise."""
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


def check_own(checkpoint: Checkpoint, expected: Expected) -> dict[str, str]:
    """A zoo folder holds exactly its model's tensors; -> {name: name in the files}. Raises ConversionError
    otherwise."""
    stored = expected.as_stored(checkpoint.headers)
    headers = {name: checkpoint.headers[file_name] for name, file_name in stored.items()}
    refuse_quantized_own(headers, expected.tensors)
    if missing := [expected.stored(name) for name in expected.tensors if name not in headers]:
        raise ConversionError(f"{_are(missing)} missing from {checkpoint.folder}: {_list(missing)}.")
    if extra := [stored[name] for name in headers if name not in expected.tensors and name not in expected.tied]:
        raise ConversionError(
            f"{checkpoint.folder} holds {_count(extra)} that its config does not describe: {_list(extra)}."
        )
    for name, tensor in expected.tensors.items():
        if headers[name].shape != tensor.shape:
            raise ConversionError(
                f"tensor {stored[name]!r} of {checkpoint.folder} is {list(headers[name].shape)}, its config asks for "
                f"{list(tensor.shape)}."
            )
    return stored


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _are(names: list[str]) -> str:
    return f"{_count(names)} {'is' if len(names) == 1 else 'are'}"


def _list(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(repr(name) for name in names[:_NAMED_AT_MOST]) + more
