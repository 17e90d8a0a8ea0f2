"""A zoo folder on its way out: the inverse plan, what the sidecar adds, and the proof that it comes back the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig

from .checkpoint import Checkpoint
from .config_bridge import export_config, import_config
from .errors import ConversionError
from .family import Family
from .incoming import Reader
from .plan import Plan, Planner, Step
from .registry import family_of, file_name, variant_of
from .sidecar import Manifest, set_aside
from .their_side import kept_dtypes
from .zoo_side import check_own, expected_tensors


class TiedReader(Reader):
    """A reader that also answers to the second names of shared tensors."""

    def __init__(self, checkpoint, dtype, kept, second_names: dict[str, str]):
        super().__init__(checkpoint, dtype, kept)
        self.second_names = second_names
        self.headers |= {second: self.headers[first] for second, first in second_names.items()}

    def read(self, name):
        return super().read(self.second_names.get(name, name))


@dataclass
class Outgoing:
    """`plan.steps` read through `reader`, `aside` as it is and `buffers` as worked out are the target's tensors; `raw`
    is its config.json."""

    config: ZooConfig
    raw: dict[str, Any]
    reader: TiedReader
    plan: Plan
    aside: Checkpoint | None
    left_behind: list[str] = field(default_factory=list)
    buffers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    tokenizer_class: str | None = None

    def outputs(self) -> dict[str, Tensor]:
        """What will be written, as meta tensors."""
        with torch.device("meta"):
            buffers = {name: make() for name, make in self.buffers.items()}
        return self.plan.outputs | buffers | (self.aside.headers if self.aside else {})

    def further(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of what the plan does not give."""
        for name, make in self.buffers.items():
            yield name, make()
        for name in self.aside.headers if self.aside else ():
            yield name, self.aside.read(name)


def read_outgoing(folder: Path, raw: dict[str, Any], to: str, dtype: torch.dtype | None = None) -> Outgoing:
    """Plans the export of a zoo folder to the family `to`."""
    config, manifest = import_config(raw), Manifest.read(folder)
    to = variant_of(to, config.source_config)
    family = family_of(to)
    same = manifest.model_type is not None and file_name(manifest.model_type) == file_name(to)
    target = export_config(config, to, **(manifest.overrides if same else {}))
    checkpoint, expected = Checkpoint(folder), expected_tensors(config)
    check_own(checkpoint, expected)
    second_names = {name: expected.tied[name] for name in manifest.tied if same and name in expected.tied}

    def planned(dtype=None, kept=None):
        reader = TiedReader(checkpoint, dtype, kept, second_names)
        for name in expected.tied:
            if name not in second_names:
                reader.headers.pop(name, None)
        plan = _plan_by_names(planner, manifest, reader) if same and manifest.names else None
        return reader, plan or planner.backward(reader.headers)

    planner = Planner(family, config)
    reader, plan = planned()
    kept = {} if dtype is None else kept_dtypes(target, to, family, dtype)
    if dtype is not None:
        reader, plan = planned(dtype, _kept(planner, plan, kept))
    _check_comes_back(planner, plan, reader.headers, to)
    if dtype is not None:
        target = {key: value for key, value in target.items() if key != "torch_dtype"}
        target["dtype"] = str(dtype).removeprefix("torch.")
    aside = set_aside(folder)
    left_behind = [] if same or aside is None else sorted(aside.headers)
    aside = aside if same else None
    buffers, pinned = _buffers(family, config, target, aside), manifest.tokenizer_class if same else None
    return Outgoing(config, target, reader, plan, aside, left_behind, buffers, pinned)


def _kept(planner: Planner, plan: Plan, theirs: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """{zoo's name: dtype} of what becomes a tensor that transformers' class keeps in a dtype of its own."""
    theirs = {planner.as_ruled(name): kept for name, kept in theirs.items()}
    kept = {}
    for step in plan.steps:
        found = [theirs[name] for name in map(planner.as_ruled, step.target_names()) if name in theirs]
        kept |= dict.fromkeys(step.source_names(), found[0]) if found else {}
    return kept


def _buffers(
    family: Family, config: ZooConfig, target: dict[str, Any], aside: Checkpoint | None
) -> dict[str, Callable]:
    """What the family's files hold, zoo works out and nobody set aside, in the dtype of the target."""
    made = family.buffers(config, target) if family.buffers else {}
    dtype = getattr(torch, target.get("dtype") or target.get("torch_dtype") or "float32")
    return {
        name: lambda make=make: make().to(dtype)
        for name, make in made.items()
        if aside is None or name not in aside.headers
    }


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
    again = planner.forward(plan.outputs).outputs
    if differing := sorted(set(again) ^ set(headers)):
        raise ConversionError(f"{to} has no place for {differing[0]!r}: the export would not come back.")
    for name, tensor in headers.items():
        if again[name].shape != tensor.shape or again[name].dtype != tensor.dtype:
            raise ConversionError(f"{name!r} would come back from {to} with another shape: {list(again[name].shape)}.")
