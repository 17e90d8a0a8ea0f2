"""Tensors that are made when they are read: a folder, a model, and either of them after operations."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from conversion.engine.config_bridge import import_config
from conversion.engine.family import Family
from conversion.engine.incoming import Reader, read_incoming
from conversion.engine.plan import Plan, Planner, Step
from conversion.engine.registry import OWN_TYPE
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import check_import, check_own, expected_tensors
from conversion.files.checkpoint import Checkpoint
from conversion.files.sources import read_config, resolve_source

from .operation import SurgeryError


class Tensors(Protocol):
    """`headers`: name → meta tensor, all of them; `read(name)` makes one."""

    headers: dict[str, Tensor]

    def read(self, name: str) -> Tensor: ...


class Planned:
    """What a plan makes of other tensors: a step runs when the first of its outputs is read, and what is not read yet
    is held until then, so that at most a step's tensors are in memory."""

    def __init__(self, plan: Plan, read: Callable[[str], Tensor], names: dict[str, Tensor] | None = None):
        self.headers, self._read = names or plan.outputs, read
        self._step_of: dict[str, Step] = {name: step for step in plan.steps for name in step.target_names()}
        self._held: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        if name not in self._held:
            self._held |= dict(self._step_of[name].run(self._read))
        return self._held.pop(name)


class InMemory:
    """Tensors of a model in memory, read as copies: a new model that is trained must leave the old one alone."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors
        self.headers = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].clone()


def of_model(model: PreTrainedModel, config: ZooConfig) -> InMemory:
    """The tensors of a model."""
    tied = expected_tensors(config).tied
    return InMemory({name: tensor.detach() for name, tensor in model.state_dict().items() if name not in tied})


class Source:
    """What is operated on: its config, its tensors, and the folder that its tokenizer and licence are in."""

    def __init__(self, name: str, config: ZooConfig, tensors: Tensors, folder: Path | None):
        self.name, self.config, self.tensors, self.folder = name, config, tensors, folder


def open_source(source: str | Path | PreTrainedModel, dtype: torch.dtype | None = None) -> Source:
    """A folder or Hub id that `zoo.load` takes, or a model in memory. Raises SurgeryError for adapters and packed
    weights, ConversionError for whatever else does not fit."""
    if isinstance(source, PreTrainedModel):
        return _open_model(source)
    folder = resolve_source(source)
    _refuse_adapter(folder)
    raw = read_config(folder)
    if raw.get("model_type") != OWN_TYPE:
        incoming = read_incoming(folder, raw, dtype)
        steps = Planned(incoming.plan, incoming.reader.read)
        steps.headers = {name: incoming.plan.outputs[name] for name in incoming.expected.tensors}
        return Source(str(source), _causal(incoming.config), steps, folder)
    if raw.get("quantization_config"):
        raise SurgeryError(f"{source} holds quantised weights: dequantise them first, as `zoo convert` does.")
    config, checkpoint = import_config(raw), Checkpoint(folder, named=raw.get("transformers_weights"))
    expected = expected_tensors(config)
    stored = check_own(checkpoint, expected)
    stored = {name: file_name for name, file_name in stored.items() if name not in expected.tied}
    if dtype is not None:
        config.dtype = dtype
    return Source(str(source), _causal(config), Reader(checkpoint, dtype, None, stored), folder)


def _open_model(model: PreTrainedModel) -> Source:
    if not isinstance(model.config, ZooConfig):
        raise SurgeryError(f"{type(model).__name__} is not zoo's class: load it with zoo.load first.")
    if getattr(model, "peft_config", None):
        raise SurgeryError("the model has adapters: merge them first (merge_and_unload).")
    if getattr(model, "is_quantized", False):
        raise SurgeryError("the model has quantised weights: dequantise them first.")
    config = import_config(model.config.to_dict())
    config.dtype = model.dtype
    return Source("a model in memory", _causal(config), of_model(model, config), None)


def _refuse_adapter(folder: Path) -> None:
    if folder.is_dir() and (folder / "adapter_config.json").is_file():
        raise SurgeryError(f"{folder} holds adapters: merge them into their model first.")


def _causal(config: ZooConfig) -> ZooConfig:
    """Refuses what is no causal language model."""
    if config.num_mtp_layers:
        raise SurgeryError(
            f"num_mtp_layers={config.num_mtp_layers}: layers that predict further tokens copy what surgery would "
            "change; set num_mtp_layers=0 first, which leaves them out."
        )
    return config


def operated(tensors: Tensors, config: ZooConfig, new: ZooConfig, rules: list[Rule]) -> Planned:
    """`tensors` of a model with `config` as those of one with `new`. Raises ConversionError where a tensor of the new
    model would be missing, left over or of another shape; nothing is read for it."""
    planner, expected = Planner(Family(rules=rules), config), expected_tensors(new)
    plan = planner.forward(tensors.headers)
    check_import(plan, expected, planner)
    return Planned(plan, tensors.read, {name: plan.outputs[name] for name in expected.tensors})


def build(config: ZooConfig, tensors: Tensors, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model itself, in eval mode."""
    from copy import deepcopy

    from description_zoo.heads import model_class

    state = {name: tensors.read(name).contiguous() for name in tensors.headers}
    dtype = dtype or main_dtype(state)
    model, info = model_class(config).from_pretrained(
        None, config=deepcopy(config), state_dict=state, dtype=dtype, output_loading_info=True
    )
    if lacking := sorted(info["missing_keys"] or info["unexpected_keys"]):
        raise SurgeryError(f"the operation does not fill its model: {lacking[0]} is left over or missing.")
    return model.eval()


def main_dtype(state: dict[str, Tensor]) -> torch.dtype:
    """That of the first tensor that is not of whole numbers."""
    return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
