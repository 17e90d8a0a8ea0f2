"""A foreign folder, read and planned: everything that can be wrong is found here, before anything is written."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from description_zoo.card_origin import repository_of
from description_zoo.heads import BODY, head_of_own

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from ..files.kept import record
from ..files.sidecar import Manifest
from ..files.training_wrappers import take_off
from ..files.writer import CODES
from ..formats import kept_quantized
from ..formats.kept_quantized import KeptQuantized
from ..formats.quantised import refuse_quantized_tensors
from ..formats.schemes import declared_dtype, decoded, without_scheme
from ..formats.storage import packed_as
from ..formats.stored import DecodedCheckpoint
from ..layouts.known import open_weights
from .config_bridge import import_config
from .plan import Plan, Planner
from .prediction import fits, found_in
from .registry import model_type_of
from .their_side import kept_dtypes, planner_for
from .zoo_side import Expected, check_import, expected_tensors, own_dtypes


class Reader:
    """A checkpoint seen in another dtype: floating tensors are cast as they are read, those in `kept` to theirs.

    `stored`: name -> name in the files, where they differ or only some of the tensors are looked at.
    """

    def __init__(
        self,
        checkpoint: StoredTensors | DecodedCheckpoint,
        dtype: torch.dtype | None = None,
        kept: dict[str, torch.dtype] | None = None,
        stored: dict[str, str] | None = None,
    ):
        self.checkpoint, self.dtype, self.kept = checkpoint, dtype, kept or {}
        self.stored = dict.fromkeys(checkpoint.headers) if stored is None else stored
        self.stored = {name: file_name or name for name, file_name in self.stored.items()}
        self.headers = {name: self._cast(name, checkpoint.headers[found]) for name, found in self.stored.items()}

    def read(self, name: str) -> Tensor:
        return self._cast(name, self.checkpoint.read(self.stored[name]))

    def place(self, name: str) -> tuple[Path, int] | None:
        """The file where the bytes of a tensor lie as they are wanted, and where they begin there."""
        stored = self.stored[name]
        same = self.checkpoint.headers[stored].dtype == self.headers[name].dtype
        return self.checkpoint.place(stored) if same else None

    def cut(self, name: str) -> int:
        """Of how many numbers the parts must be multiples in which a tensor can be read; 0: only whole."""
        return self.checkpoint.cut(self.stored[name])

    def read_numbers(self, name: str, start: int, stop: int) -> Tensor:
        """Its numbers from `start` to `stop`, in one dimension."""
        return self._cast(name, self.checkpoint.read_numbers(self.stored[name], start, stop))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a tensor along its first dimension."""
        return self._cast(name, self.checkpoint.read_rows(self.stored[name], start, stop))

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
    quantized: KeptQuantized | None = None

    def outputs(self) -> dict[str, Tensor]:
        """What will be written, as meta tensors, in the model's order."""
        return {self.expected.stored(name): self.plan.outputs[name] for name in self.expected.tensors}


def read_incoming(
    folder: Path,
    raw: dict[str, Any],
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    keep_quantized: bool = False,
) -> Incoming:
    """Plans the import of a foreign folder; raises ConversionError for whatever does not fit."""
    model_type = model_type_of(raw, str(folder / "config.json"))
    checkpoint = open_weights(folder, raw, allow_pickle, None if dtype is None else torch.float32)
    take_off(checkpoint)
    # What is cast later is decoded in float32, so that it is rounded once.
    checkpoint = decoded(checkpoint, raw, None if dtype is None else torch.float32)
    kept = kept_quantized.of_source(checkpoint, raw, dtype or declared_dtype(raw)) if keep_quantized else None
    stored_as = packed_as(folder, raw)
    raw, overrides = without_scheme(raw), {}
    reader = Reader(checkpoint)

    def planned(**changes):
        overrides.update(changes)
        config = import_config(raw, **overrides)
        expected, planner = expected_tensors(config), planner_for(raw, model_type, config)
        plan = planner.forward(reader.headers)
        refuse_quantized_tensors(plan, expected)
        return config, expected, planner, plan, _share(plan, expected)

    config, expected, planner, plan, unshared = planned()
    if fields := found_in(plan.aside, {name: planner.as_seen(name) for name in plan.aside}, config, raw):
        # Layers that predict further tokens are parts of the model where all of them are as zoo builds them.
        with suppress(ConversionError):
            found = planned(**fields)
            if fits(found[3].outputs, found[1].tensors):
                (config, expected, planner, plan, unshared), fields = found, {}
        for name in fields:
            del overrides[name]
    if _is_body(plan, expected, planner, checkpoint):
        config, expected, planner, plan, unshared = planned(architectures=[BODY])
    stored_twice = _equal_copies(plan, expected, checkpoint)
    if not all(stored_twice.values()):
        # As transformers does: a head that is stored and differs is a head of its own, whatever the config says.
        config, expected, planner, plan, unshared = planned(tie_word_embeddings=False)
        stored_twice = {}
    check_import(plan, expected, planner)
    if dtype is not None:
        reader = Reader(checkpoint, dtype, _kept(raw, config, planner, plan, dtype))
        plan = planner.forward(reader.headers)
        _share(plan, expected)
    config.dtype = dtype or config.dtype
    config.source_extras = record(planner, plan.kept, folder, kept and kept.method)
    manifest = Manifest(model_type, overrides=overrides, kept=plan.kept, dropped=plan.dropped, **repository_of(folder))
    manifest.stored_as = stored_as
    manifest.tied = [*stored_twice, *unshared]
    manifest.unshared = [expected.tied[name] for name in unshared]
    _note_files(manifest, plan, planner, reader)
    plan.steps = [step for step in plan.steps if not set(step.target_names()) <= set(stored_twice)]
    return Incoming(config, reader, plan, expected, manifest, kept)


def _note_files(manifest: Manifest, plan: Plan, planner: Planner, reader: Reader) -> None:
    """What the rules alone would not give back: names of tensors, and the dtype they had before a cast."""
    headers = reader.checkpoint.headers
    if any(reader.headers[name].dtype != tensor.dtype for name, tensor in headers.items()):
        manifest.cast = str(reader.dtype).removeprefix("torch.")
    if not _rules_find_back(plan, planner, headers):
        used = {name: headers[name] for step in plan.steps for name in step.source_names()}
        manifest.names = {name: [CODES[tensor.dtype], list(tensor.shape)] for name, tensor in used.items()}


def _is_body(plan: Plan, expected: Expected, planner: Planner, checkpoint: StoredTensors | DecodedCheckpoint) -> bool:
    """Whether a file that should have a head has none, and the names a body alone gives its tensors: what was saved is
    the body of the model that config.json names."""
    lacking = [name for name in expected.tensors if name not in plan.outputs]
    prefixes = (planner.family.base_prefix, *planner.family.prefixes)
    headless = bool(lacking) and all(name.startswith("lm_head.") for name in lacking)
    return headless and not any(name.startswith(prefixes) for name in checkpoint.headers)


def _share(plan: Plan, expected: Expected) -> list[str]:
    """Where only the second name of a shared tensor is stored, the first gets it; -> those second names."""
    alone = [name for name in expected.tied if name in plan.outputs and expected.tied[name] not in plan.outputs]
    for name in alone:
        plan.outputs[expected.tied[name]] = plan.outputs.pop(name)
        for step in plan.steps:
            step.targets = [expected.tied[name] if target == name else target for target in step.targets]
    return alone


def _kept(
    raw: dict[str, Any], config: ZooConfig, planner: Planner, plan: Plan, dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """{source name: dtype} of what zoo's own class or transformers' keeps when it loads in `dtype`. What becomes one
    tensor has one dtype."""
    ours = own_dtypes(config, dtype)
    theirs = kept_dtypes(raw, model_type_of(raw), planner.family, dtype, head_of_own(config))
    theirs = {planner.as_ruled(name): kept for name, kept in theirs.items()}
    kept = {}
    for step in plan.steps:
        found = [ours[name] for name in step.target_names() if name in ours]
        found += [theirs[name] for name in map(planner.as_ruled, step.source_names()) if name in theirs]
        kept |= dict.fromkeys(step.source_names(), found[0]) if found else {}
    return kept


def _equal_copies(plan: Plan, expected: Expected, checkpoint: StoredTensors) -> dict[str, bool]:
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
