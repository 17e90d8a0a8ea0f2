"""zoo merge: several models → one, tensor by tensor, on one naming for all families.

Every input is brought to the flags of the first model (the base, where there is one) by exact operations, whatever
family it comes from; what stays different is refused by its flag. Weights are runnable: of each model one tensor.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.transfer import parse_dtype
from conversion.engine.zoo_side import expected_tensors

from . import measurement
from .common_flags import bring_to, one_way
from .depth import LAYER, per_layer_fields
from .merge_heads import match_heads
from .merge_methods import METHODS, Part, Settings
from .merge_plan import MergePlan, MergeSlice, MergeSource, parse_plan, read_yaml, value_at
from .operating import State, changed_config, perform, stage
from .operation import ARITHMETIC, SurgeryError, own_fields, refuse_values
from .planner import differing
from .report import Done, Report
from .streaming import runnable
from .tensors import Tensors, open_source
from .texts import read_text
from .vocabularies import same_vocabulary
from .writing import Place, check_place, write_folder


def merge(
    plan: str | Path | dict[str, Any],
    target: str | Path | None = None,
    *,
    evaluate: Any = None,
    to: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Merges what mergekit's YAML in the file `plan` (or a dict) names into `target`; without one the model is
    `report.model`. `evaluate` is a text whose last rows every input and the new model are measured with.

    Either `target` is complete afterwards, or SurgeryError says in one sentence what is wrong.
    """
    content = read_yaml(plan)
    refuse_values({"seed": (seed, int)})
    if target is not None and not dry_run:
        check_place(Path(target), None, overwrite)
    if "experts" in content:
        from .merge_experts import experts_of_models

        state, report = experts_of_models(content, dtype, seed, progress)
    else:
        state, report = merged(parse_plan(content), dtype, seed, progress)
    report.dtype = str(state.config.dtype or torch.float32).removeprefix("torch.")
    if dry_run:
        return report
    if evaluate is not None:
        rows = read_text(evaluate, state.source.folder, state.config)
        ids = rows.to_measure(measurement.EVALUATION_TOKENS)
        report.evaluation = {"text": rows.name, "sha256": rows.sha256, "tokens": ids.numel()}
        first, new = runnable(state.source.config, state.source.tensors), runnable(state.config, state.tensors)
        report.before.perplexity = measurement.perplexity(first, ids, progress)
        report.after.perplexity = measurement.perplexity(new, ids, progress)
        report.after.divergence = measurement.divergence(first, new, ids)
    if target is None:
        state.config.surgery = report.record()
        report.model = state.model()
        return report
    return write_folder(Place(Path(target), max_shard_size, overwrite, to), state, report)


def merged(plan: MergePlan, dtype: Any, seed: int, progress: bool) -> tuple[State, Report]:
    """The merged model as it would be read now, and what is said of it."""
    models = open_all(plan.models, progress)
    first = models[plan.models[0]]
    places = layer_places(plan, models)
    config = merged_config(plan, models, places)
    kind = parse_dtype(dtype or plan.dtype)
    if kind is not None:
        config.dtype = kind
    tensors = Merged(plan, {name: state.tensors for name, state in models.items()}, config, places, kind, seed)
    state = State(first.source, config, tensors, seed=seed, progress=progress)
    if plan.tokenizer is not None:
        state.source = models[plan.tokenizer].source if plan.tokenizer in models else first.source
    fields = {"merge_method": plan.method, "models": plan.models}
    done = [Done(f"{name}: {', '.join(one.name for one in models[name].done)}", {}, {}, [], "arithmetic")
            for name in plan.models if models[name].done]  # fmt: skip
    done.append(Done("merge", fields, {}, list(range(config.num_hidden_layers)), "approximate", plan.method))
    return state, Report(plan.models[0], None, done, stage(first.config), stage(config))


def open_all(names: list[str], progress: bool = False) -> dict[str, State]:
    """{name: the model with the flags of the first}. Raises SurgeryError for what cannot be merged."""
    states = {}
    for name in names:
        source = open_source(name)
        states[name] = State(source, source.config, source.tensors, progress=progress)
    first = states[names[0]]
    fields = differing(first.config, one_way([state.config for state in states.values()]))
    if fields:
        perform(first, fields, None, None, None)
    for name, state in states.items():
        if state is not first:
            same_vocabulary(first.source, state.source)
            bring_to(state, first.config, name)
    for state in states.values():
        if state is not first and state.config.num_hidden_layers == first.config.num_hidden_layers:
            state.tensors, layers = match_heads(state.tensors, first.tensors, first.config)
            if layers:
                state.done.append(Done("heads in the order of the first model", {}, {}, layers, str(ARITHMETIC)))
    return states


@dataclass
class LayerPlace:
    """A layer of the new model: its slice, its number among that slice's, and the layer of each source."""

    slice: MergeSlice
    along: float
    layers: dict[int, int] = field(default_factory=dict)  # position among the sources → layer


def layer_places(plan: MergePlan, models: dict[str, State]) -> list[LayerPlace]:
    """Raises SurgeryError where a range goes beyond a model, or models of other depths are merged as a whole."""
    places = []
    for one in plan.slices:
        ranges = []
        for source in one.sources:
            count = models[source.model].config.num_hidden_layers
            first, last = source.layers or (0, count)
            if last > count:
                raise SurgeryError(
                    f"layer_range={list(source.layers)} of {source.model} goes beyond its {count} layers."
                )
            ranges.append((first, last))
        if len({last - first for first, last in ranges}) > 1:
            counts = ", ".join(
                f"{source.model} {last - first}" for source, (first, last) in zip(one.sources, ranges, strict=True)
            )
            raise SurgeryError(f"num_hidden_layers differs ({counts}): name slices with a layer_range.")
        total = ranges[0][1] - ranges[0][0]
        for number in range(total):
            layers = {position: first + number for position, (first, _) in enumerate(ranges)}
            places.append(LayerPlace(one, number / max(1, total - 1), layers))
    return places


def merged_config(plan: MergePlan, models: dict[str, State], places: list[LayerPlace]) -> ZooConfig:
    """The first model's config with as many layers, each as it is in the first source of its slice."""
    first = models[plan.models[0]].config
    origins = [(models[place.slice.sources[0].model].config, place.layers[0]) for place in places]
    changes: dict[str, Any] = {"num_hidden_layers": len(places)}
    for name in per_layer_fields():
        if isinstance(getattr(first, name), list):
            changes[name] = [getattr(config, name)[layer] for config, layer in origins]
    own = {
        str(new): own_fields(config)[layer]
        for new, (config, layer) in enumerate(origins)
        if layer in own_fields(config)
    }
    if own:
        changes["per_layer_config"] = own
    return changed_config(first, changes)


class Merged:
    """The tensors of a merge, each made when it is read."""

    def __init__(
        self,
        plan: MergePlan,
        models: dict[str, Tensors],
        config: ZooConfig,
        places: list[LayerPlace],
        dtype: torch.dtype | None,
        seed: int,
    ):
        self.plan, self.models, self.places, self.seed = plan, models, places, seed
        self.method, self.first = METHODS[plan.method], models[plan.models[0]]
        self.headers: dict[str, Tensor] = {}
        for name, tensor in expected_tensors(config).tensors.items():
            there = self.place_of(name)[1](0)
            known = self.first.headers.get(there) if plan.base else None
            known = known if known is not None else self.models[self.place_of(name)[0].sources[0].model].headers[there]
            kind = dtype if dtype is not None and known.is_floating_point() else known.dtype
            self.headers[name] = torch.empty(tensor.shape, dtype=kind, device="meta")

    def place_of(self, name: str) -> tuple[MergeSlice, Callable[[int], str], float]:
        """(the slice of a tensor, its name in the source at a position, how far along the layers it is)."""
        if not name.startswith(LAYER):
            last = not name.startswith("model.embed")
            return self.plan.slices[-1 if last else 0], lambda position: name, float(last)
        number, _, rest = name.removeprefix(LAYER).partition(".")
        place = self.places[int(number)]
        return place.slice, lambda position: f"{LAYER}{place.layers[position]}.{rest}", place.along

    def read(self, name: str) -> Tensor:
        """One tensor, in float32 until it is done. Raises SurgeryError for parameters that are no numbers."""
        one, there, along = self.place_of(name)
        parts, base = [], None
        for position, source in enumerate(one.sources):
            tensor = self.models[source.model].read(there(position))
            if self.method.base and source.model == self.plan.base:
                base = tensor.float() if base is None else base
                continue
            parts.append(self.part(tensor, source, one, name, along))
        if self.method.base and base is None:
            base = self.first.read(there(0)).float()
        if not self.headers[name].is_floating_point():
            return parts[0].tensor
        settings = self.settings(one, name, along)
        return self.method.function(parts, base, settings).to(self.headers[name].dtype)

    def part(self, tensor: Tensor, source: MergeSource, one: MergeSlice, name: str, along: float) -> Part:
        floats = tensor.float() if tensor.is_floating_point() and self.plan.method != "passthrough" else tensor
        values = {
            key: self.number(key, (source.parameters, one.parameters), name, along) for key in self.method.of_model
        }
        return Part(floats, **{key: float(value) for key, value in values.items() if value is not None})

    def settings(self, one: MergeSlice, name: str, along: float) -> Settings:
        found = {key: self.number(key, (one.parameters,), name, along) for key in self.method.of_all}
        drawn = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
        scaling, t = found.get("lambda"), found.get("t")
        if "t" in self.method.of_all and t is None:
            raise SurgeryError(f"merge_method={self.plan.method}: parameters.t is missing.")
        return Settings(found.get("normalize"), 1.0 if scaling is None else scaling, 0.5 if t is None else t, generator)

    def number(self, key: str, tables: tuple[dict[str, Any], ...], name: str, along: float) -> Any:
        """A parameter: a source's own, its slice's, or the plan's. Raises SurgeryError for what is no number."""
        given = next((table[key] for table in (*tables, self.plan.parameters) if key in table), None)
        value = None if given is None else value_at(given, name, along)
        if not isinstance(value, (int, float, type(None))):
            raise SurgeryError(f"{key}={value!r} is no number.")
        if key == "density" and value is not None and not 0 < value <= 1:
            raise SurgeryError(f"density={value} must be more than 0 and at most 1.")
        return value
