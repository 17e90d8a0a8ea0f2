"""A merge as mergekit's YAML says it: which layers of which models, with which parameters, by which method.

    merge_method: ties                      merge_method: passthrough
    base_model: owner/base                  slices:
    models:                                   - sources: [{model: a, layer_range: [0, 16]}]
      - model: owner/one                      - sources: [{model: b, layer_range: [8, 24]}]
        parameters: {weight: 0.5, density: [0.2, 0.8]}
    parameters: {normalize: true}
    dtype: bfloat16

A parameter is a number, a list (from the first layer to the last, in between on a line), or a list of {filter, value},
of which the first whose filter is in a tensor's name holds.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..yaml_files import read_table
from .merge_methods import METHODS
from .operation import SurgeryError, refuse_values

KEYS = {
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "name",
}
EXPERT_KEYS = {"base_model", "gate_mode", "dtype", "experts", "experts_per_token", "shared_experts"}
SOURCE_KEYS, MODEL_KEYS = {"model", "layer_range", "parameters"}, {"model", "parameters"}
# What the originals call the norms of a layer.
OTHER_NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm", "layernorm": "norm"}


@dataclass
class MergeSource:
    """Layers `first` to `last` (left out) of a model, all where it is None; its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class MergeSlice:
    """Layers of the new model, one after the other, each made of one of every source."""

    sources: list[MergeSource]
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class MergePlan:
    """The file, read."""

    method: str
    base: str | None
    slices: list[MergeSlice]
    parameters: dict[str, Any]
    dtype: str | None = None
    tokenizer: str | None = None

    @property
    def models(self) -> list[str]:
        """Every model once, the base first."""
        named = [source.model for one in self.slices for source in one.sources]
        return list(dict.fromkeys([self.base, *named] if self.base else named))


def read_yaml(plan: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The file's content. Raises SurgeryError where it is no table."""
    return plan if isinstance(plan, dict) else read_table(plan, SurgeryError, "a plan")


def refuse_others(given: Any, known: set[str], where: str) -> None:
    """Raises SurgeryError for what is no table, or for a key of one that means nothing here."""
    if not isinstance(given, dict):
        raise SurgeryError(f"{where} must be keys and values, not {given!r}.")
    if unknown := sorted(set(given) - known):
        raise SurgeryError(f"{where} has {unknown[0]!r}, which means nothing here: there are {sorted(known)}.")


def parse_plan(content: dict[str, Any]) -> MergePlan:
    """Raises SurgeryError for keys that mean nothing, and for what a method lacks."""
    refuse_others(content, KEYS, "the plan")
    refuse_values({name: (content.get(name), list) for name in ("models", "slices")})
    refuse_values({name: (content.get(name), str) for name in ("merge_method", "base_model", "tokenizer_source")})
    name = content.get("merge_method")
    if name not in METHODS:
        raise SurgeryError(f"merge_method={name!r} is none of {sorted(METHODS)}.")
    if ("models" in content) == ("slices" in content):
        raise SurgeryError("a plan has either models or slices.")
    method, base = METHODS[name], content.get("base_model")
    parameters = content.get("parameters") or {}
    known = {*method.of_model, *method.of_all}
    refuse_others(parameters, known, f"parameters of {name}")
    slices = (
        [MergeSlice([parse_source(one, MODEL_KEYS, known) for one in content["models"]])]
        if "models" in content
        else [parse_slice(one, known) for one in content["slices"]]
    )
    if method.base and base is None:
        raise SurgeryError(f"merge_method={name}: base_model is missing.")
    for one in slices:
        others = [source for source in one.sources if not (method.base and source.model == base)]
        if not others or (method.models is not None and len(others) != method.models):
            says = f"{method.models} model" if method.models is not None else "models"
            raise SurgeryError(f"merge_method={name} takes {says}{' beside the base' if method.base else ''}.")
    tokenizer = content.get("tokenizer_source")
    if tokenizer == "union":
        raise SurgeryError("tokenizer_source: union makes a new vocabulary; name one of the models, or base.")
    dtype = content.get("out_dtype") or content.get("dtype")
    return MergePlan(name, base, slices, parameters, dtype, base if tokenizer == "base" else tokenizer)


def parse_slice(given: Any, known: set[str]) -> MergeSlice:
    refuse_others(given, {"sources", "parameters"}, "a slice")
    refuse_values({"sources": (given.get("sources"), list)})
    refuse_others(given.get("parameters") or {}, known, "parameters of a slice")
    sources = [parse_source(one, SOURCE_KEYS, known) for one in given.get("sources") or []]
    lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers}
    if len(lengths) > 1:
        raise SurgeryError(f"the sources of a slice have {sorted(lengths)} layers: they must have as many.")
    return MergeSlice(sources, given.get("parameters") or {})


def parse_source(given: Any, keys: set[str], known: set[str]) -> MergeSource:
    """Raises SurgeryError for a source without a model, or with a range that is none."""
    refuse_others(given, keys, "a model")
    if not isinstance(given.get("model"), str):
        raise SurgeryError(f"{given!r} names no model.")
    parameters = given.get("parameters") or {}
    refuse_others(parameters, known, f"parameters of {given['model']}")
    layers = given.get("layer_range")
    if layers is not None:
        whole = isinstance(layers, list) and len(layers) == 2 and all(type(one) is int for one in layers)
        if not whole or not 0 <= layers[0] < layers[1]:
            raise SurgeryError(f"layer_range={layers!r}: write [first, last], the last left out.")
    return MergeSource(given["model"], None if layers is None else tuple(layers), parameters)


def value_at(given: Any, name: str, along: float) -> Any:
    """A parameter for the tensor `name`, `along` the way from the first layer to the last. Raises SurgeryError for a
    list of filters of which none holds."""
    if not isinstance(given, list):
        return given
    if all(isinstance(one, (int, float)) for one in given):
        position = along * (len(given) - 1)
        low = min(int(position), len(given) - 1)
        high = min(low + 1, len(given) - 1)
        return given[low] + (position - low) * (given[high] - given[low])
    for one in given:
        refuse_others(one, {"filter", "value"}, "a filter")
        wanted = one.get("filter")
        if wanted in (None, "*") or OTHER_NAMES.get(wanted, wanted) in name:
            return value_at(one["value"], name, along)
    raise SurgeryError(f"no filter holds for {name}: end the list with a value without one.")
