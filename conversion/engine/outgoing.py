"""A zoo folder on its way out: the inverse plan, what the sidecar adds, and the proof that it comes back the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from description_zoo.heads import head_of_own

from ..errors import ConversionError
from ..files.checkpoint import Checkpoint
from ..files.extras import (
    Extras,
    of_folder,
    of_source,
    promise_nothing,
    refuse_loss,
    refuse_lost_quantized,
    text_family,
)
from ..files.sidecar import Manifest
from ..formats.fp8_block import Fp8Block
from ..formats.kept_quantized import KeptQuantized
from ..formats.quantised import refuse_quantized_config
from .config_bridge import export_config, import_config
from .incoming import Reader
from .plan import Plan, Planner, Step
from .quantizing import quantized
from .registry import family_of, file_name, model_type_of, spoken, variant_of
from .rules import Row
from .text_models import part_of
from .their_side import kept_dtypes, planner_for
from .zoo_side import Expected, check_own, expected_tensors


@dataclass
class Outgoing:
    """`plan.steps` read through `reader`, `extras` as they are and `buffers` as worked out are the target's tensors;
    `raw` is its config.json, `to` its family; `packed` says how its weights are stored, where they are not plain."""

    config: ZooConfig
    to: str
    raw: dict[str, Any]
    reader: Reader
    plan: Plan
    extras: Extras
    planner: Planner
    parameters: int
    left_behind: list[str] = field(default_factory=list)
    buffers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    packed: KeptQuantized | Fp8Block | None = None

    def outputs(self) -> dict[str, Tensor]:
        """What will be written, as meta tensors."""
        with torch.device("meta"):
            buffers = {name: make() for name, make in self.buffers.items()}
        return self.plan.outputs | buffers | self.extras.headers()

    def stored(self) -> dict[str, Tensor]:
        """The same as the target stores them."""
        return self.outputs() if self.packed is None else self.packed.headers(self.outputs())

    def completed(self) -> dict[str, Row]:
        """Names of tensors that get a part of the model back, the rest of which was set aside."""
        steps = [step for step in self.plan.steps if step.rule is not None and step.rule.aside_too]
        return {name: step.rule.ops[0] for step in steps for name in step.target_names() if name in self.extras.names}

    def packed_names(self) -> frozenset[str]:
        """Which tensors are not stored as they are."""
        return frozenset() if self.packed is None else frozenset(self.packed.chosen)

    def as_stored(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of what the target stores one of its tensors as."""
        return iter([(name, tensor)]) if self.packed is None else self.packed.written([(name, tensor)])


@dataclass(frozen=True)
class ExtrasOptions:
    """Tensors of the original that zoo does not use: `source` is a checkpoint to take them from, `text_only` leaves
    them out."""

    source: str | Path | None = None
    text_only: bool = False


def read_outgoing(
    folder: Path,
    raw: dict[str, Any],
    to: str,
    dtype: torch.dtype | None = None,
    wanted: ExtrasOptions | None = None,
    quantize: bool = False,
) -> Outgoing:
    """Plans the export of a zoo folder to the family `to`, with `quantize` its matrices in eight bits."""
    refuse_quantized_config(raw)
    config, wanted = import_config(raw), wanted or ExtrasOptions()
    to, extras, left_behind = _planned_extras(folder, config, to, wanted, dtype is not None, quantize)
    family, manifest = family_of(to), extras.manifest
    target = export_config(config, to, **manifest.overrides)
    checkpoint, expected = Checkpoint(folder, named=raw.get("transformers_weights")), expected_tensors(config)
    stored = _names(check_own(checkpoint, expected), expected, manifest)

    def planned(dtype=None, kept=None):
        reader = Reader(checkpoint, dtype, kept, stored)
        plan = _plan_by_names(planner, manifest, reader) if manifest.names else None
        return reader, plan or planner.backward(reader.headers)

    planner = planner_for(target, to, config)
    reader, plan = planned()
    if dtype is not None:
        kept = kept_dtypes(target, to, family, dtype, head_of_own(config))
        reader, plan = planned(dtype, _kept(planner, plan, kept))
        target = {key: value for key, value in target.items() if key != "torch_dtype"}
        target["dtype"] = str(dtype).removeprefix("torch.")
    _check_comes_back(planner, plan, reader.headers, to)
    # The name of a file of the source, which the target has under the usual one.
    target.pop("transformers_weights", None)
    if wanted.text_only and not config.num_mtp_layers:
        promise_nothing(target)
    buffers = _buffers(planner, config, target, extras)
    found = Outgoing(config, to, target, reader, plan, extras, planner, expected.parameters, left_behind, buffers)
    found.packed = extras.quantized
    if quantize:
        found.packed = quantized(found)
    return found


def _planned_extras(
    folder: Path, config: ZooConfig, to: str, wanted: ExtrasOptions, plain: bool, quantize: bool
) -> tuple[str, Extras, list[str]]:
    """-> the family to write, what goes there beside the model, and what stays behind; with `plain`, stored tensors of
    quantised weights do not go there, with `quantize` they need not."""
    came_from = (config.source_config or {}).get("model_type")
    to, extras = variant_of(to, config.source_config), of_folder(folder, plain)
    is_original = came_from is not None and file_name(model_type_of(config.source_config)) == file_name(to)
    if not is_original or (wanted.text_only and family_of(to).section):
        if wanted.source is not None:
            raise ConversionError(
                f"source= is only of use when converting back to {came_from}, where the model is from."
            )
        kept = extras.manifest.kept or (config.source_extras or {}).get("tensors", {})
        to = text_family(config, to) if is_original else to
        return to, Extras(), sorted(kept)
    planner = Planner(family_of(to), config)
    if file_name(extras.manifest.model_type or "") != file_name(to):
        extras = Extras()
    if wanted.source is not None:
        extras = of_source(wanted.source, planner, config)
    if plain:
        extras = replace(extras, quantized=None)
    elif not quantize:
        refuse_lost_quantized(extras, config, folder)
    if wanted.text_only:
        return to, extras.without(extras.manifest.kept), sorted(extras.manifest.kept)
    refuse_loss(extras, planner, config, folder, to)
    return to, extras, []


def _names(stored: dict[str, str], expected: Expected, manifest: Manifest) -> dict[str, str]:
    """{name of a tensor that goes out: name in the zoo folder}: a shared tensor under the names the source had."""
    names = {name: found for name, found in stored.items() if name not in expected.tied}
    names |= {name: stored[expected.tied[name]] for name in manifest.tied if name in expected.tied}
    return {name: found for name, found in names.items() if name not in manifest.unshared or not expected.tied}


def _kept(planner: Planner, plan: Plan, theirs: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """{zoo's name: dtype} of what becomes a tensor that transformers' class keeps in a dtype of its own."""
    theirs = {planner.as_ruled(name): kept for name, kept in theirs.items()}
    kept = {}
    for step in plan.steps:
        found = [theirs[name] for name in map(planner.as_ruled, step.target_names()) if name in theirs]
        kept |= dict.fromkeys(step.source_names(), found[0]) if found else {}
    return kept


def _buffers(planner: Planner, config: ZooConfig, target: dict[str, Any], extras: Extras) -> dict[str, Callable]:
    """What the family's files hold and zoo computes, where it was not set aside; in the dtype of the target."""
    text = part_of(target, planner.family.section) or target
    made = planner.family.buffers(config, text) if planner.family.buffers else {}
    kept = {planner.as_ruled(name) for name in extras.names}
    made = {planner.in_files(name): make for name, make in made.items() if planner.as_ruled(name) not in kept}
    dtype = getattr(torch, target.get("dtype") or target.get("torch_dtype") or "float32")
    return {name: lambda make=make: make().to(dtype) for name, make in made.items()}


def _plan_by_names(planner: Planner, manifest: Manifest, reader: Reader) -> Plan | None:
    """The import's own plan, inverted step by step; None when the model has other tensors by now."""
    forward = planner.forward(manifest.headers())
    if set(forward.outputs) != set(reader.headers):
        return None
    plan = Plan()
    for step in forward.steps:
        back = Step(step.targets, step.sources, step.rule, step.ctx, backward=True)
        planner.add(back, plan, reader.headers)
    return plan


def _check_comes_back(planner: Planner, plan: Plan, headers: dict[str, Tensor], to: str) -> None:
    """Importing what will be written must give this model's tensors again."""
    again, to = planner.forward(plan.outputs).outputs, spoken(to)
    if differing := sorted(set(again) ^ set(headers)):
        raise ConversionError(f"{to} has no place for {differing[0]!r}: converted back, the model would lack it.")
    for name, tensor in headers.items():
        if again[name].shape != tensor.shape or again[name].dtype != tensor.dtype:
            raise ConversionError(f"{name!r} would come back from {to} with another shape: {list(again[name].shape)}.")
