"""A foreign folder, read and planned: everything that can be wrong is found here, before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig

from .checkpoint import Checkpoint
from .config_bridge import import_config
from .errors import ConversionError
from .plan import Plan, Planner
from .quantised import refuse_quantized_folder, refuse_quantized_tensors
from .registry import family_of, model_type_of
from .sidecar import Manifest
from .their_side import kept_dtypes
from .writer import CODES
from .zoo_side import Expected, check_import, expected_tensors, own_dtypes


class Reader:
    """A checkpoint seen in another dtype: floating tensors are cast as they are read, those in `kept` to theirs."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype | None = None, kept: dict[str, torch.dtype] | None = None
    ):
        self.checkpoint, self.dtype, self.kept = checkpoint, dtype, kept or {}
        self.headers = {name: self._cast(name, tensor) for name, tensor in checkpoint.headers.items()}

    def read(self, name: str) -> Tensor:
        return self._cast(name, self.checkpoint.read(name))

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        same = self.dtype is None or not tensor.is_floating_point()
        return tensor if same else tensor.to(self.kept.get(name, self.dtype))


@dataclass
class Incoming:
    """`plan.steps` read through `reader` give every tensor of a ZooForCausalLM with `config`."""

    config: ZooConfig
    reader: Reader
    plan: Plan
    expected: Expected
    manifest: Manifest

    def outputs(self) -> dict[str, Tensor]:
        """What will be written, as meta tensors, in the model's order."""
        return {name: self.plan.outputs[name] for name in self.expected.tensors}


def read_incoming(folder: Path, raw: dict[str, Any], dtype: torch.dtype | None = None) -> Incoming:
    """Plans the import of a foreign folder; raises ConversionError for whatever does not fit."""
    model_type = model_type_of(raw, str(folder / "config.json"))
    family = family_of(model_type)
    config = import_config(raw)
    refuse_quantized_folder(folder)
    checkpoint = Checkpoint(folder, named=raw.get("transformers_weights"))
    expected, planner = expected_tensors(config), Planner(family, config)
    overrides = {}
    reader = Reader(checkpoint)
    plan = planner.forward(reader.headers)
    refuse_quantized_tensors(plan, expected)
    stored_twice = _equal_copies(plan, expected, checkpoint)
    if not all(stored_twice.values()):
        # As transformers does: a head that is stored and differs is a head of its own, whatever the config says.
        overrides = {"tie_word_embeddings": False}
        config = import_config(raw, **overrides)
        expected, planner = expected_tensors(config), Planner(family, config)
        stored_twice = {}
    check_import(plan, expected, planner)
    if dtype is not None:
        reader = Reader(checkpoint, dtype, _kept(raw, config, planner, plan, dtype))
        plan = planner.forward(reader.headers)
    config.dtype = dtype or config.dtype
    manifest = Manifest(model_type, list(stored_twice), overrides, kept=plan.kept, dropped=plan.dropped)
    if any(reader.headers[name].dtype != tensor.dtype for name, tensor in checkpoint.headers.items()):
        manifest.cast = str(dtype).removeprefix("torch.")
    if not _rules_find_back(plan, planner, checkpoint.headers):
        used = (name for step in plan.steps for name in step.source_names())
        headers = {name: checkpoint.headers[name] for name in used}
        manifest.names = {name: [CODES[tensor.dtype], list(tensor.shape)] for name, tensor in headers.items()}
    plan.steps = [step for step in plan.steps if not set(step.target_names()) <= set(stored_twice)]
    return Incoming(config, reader, plan, expected, manifest)


def _kept(
    raw: dict[str, Any], config: ZooConfig, planner: Planner, plan: Plan, dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """{source name: dtype} of what zoo's own class or transformers' keeps when it loads in `dtype`. What becomes one
    tensor has one dtype."""
    ours = own_dtypes(config, dtype)
    theirs = kept_dtypes(raw, model_type_of(raw), planner.family, dtype)
    theirs = {planner.as_ruled(name): kept for name, kept in theirs.items()}
    kept = {}
    for step in plan.steps:
        found = [ours[name] for name in step.target_names() if name in ours]
        found += [theirs[name] for name in map(planner.as_ruled, step.source_names()) if name in theirs]
        kept |= dict.fromkeys(step.source_names(), found[0]) if found else {}
    return kept


def _equal_copies(plan: Plan, expected: Expected, checkpoint: Checkpoint) -> dict[str, bool]:
    """{second name of a shared tensor the source stores all the same: whether it equals the first}."""
    step_of = {target: step for step in plan.steps for target in step.target_names()}
    copies = {}
    for second, first in expected.tied.items():
        if second in plan.outputs and first in plan.outputs:
            one, other = (dict(step_of[name].run(checkpoint.read))[name] for name in (first, second))
            copies[second] = one.dtype == other.dtype and torch.equal(one, other)
    if differing := [name for name, equal in copies.items() if not equal and name != "lm_head.weight"]:
        raise ConversionError(f"{differing[0]!r} must equal {expected.tied[differing[0]]!r}, with which it is shared.")
    return copies


def _rules_find_back(plan: Plan, planner: Planner, headers: dict[str, Tensor]) -> bool:
    """Whether the inverse rules give the source's own names and shapes again."""
    back = {name: tensor.shape for name, tensor in planner.backward(plan.outputs).outputs.items()}
    shapes = {name: headers[name].shape for step in plan.steps for name in step.source_names()}
    return back == shapes
