"""What a source held beside the model, which zoo does not use: recorded in the config, found again when converting
back.

A vision tower, a projector, layers that predict further tokens. `source/` of a converted folder holds them, and saving
a model carries it along where it can; `source_extras` of the config says what there was, wherever the model goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from configuration_zoo import ZooConfig

from ..engine.incoming import read_incoming
from ..engine.plan import Planner
from ..engine.prediction import COUNTS
from ..engine.registry import OWN_TYPE, family_of, file_name, is_known, known_name, model_type_of, spoken
from ..engine.text_models import ALONE, part_of
from ..errors import ConversionError
from ..formats import kept_quantized
from ..formats.kept_quantized import KeptQuantized
from ..formats.schemes import declared_dtype
from .checkpoint import Checkpoint
from .kept import groups, in_words
from .sidecar import Manifest, set_aside
from .sources import read_config, resolve_source


@dataclass
class Extras:
    """`manifest` and the tensors `names` of `checkpoint` go back to where the model came from, weights as `quantized`
    has kept them."""

    manifest: Manifest = field(default_factory=Manifest)
    checkpoint: Checkpoint | None = None
    names: list[str] = field(default_factory=list)
    quantized: KeptQuantized | None = None

    def headers(self) -> dict[str, Tensor]:
        return {name: self.checkpoint.headers[name] for name in self.names}

    def without(self, kept: Iterable[str]) -> "Extras":
        return replace(self, names=[name for name in self.names if name not in set(kept)])


def of_folder(folder: Path, plain: bool = False) -> Extras:
    """What a zoo folder has in its `source/`; with `plain`, without the stored tensors of quantised weights."""
    checkpoint, manifest = set_aside(folder), Manifest.read(folder)
    names = [] if checkpoint is None else list(checkpoint.headers)
    return Extras(manifest, checkpoint, names, None if plain else kept_quantized.of_folder(folder, manifest))


def of_source(source: str | Path, planner: Planner, config: ZooConfig) -> Extras:
    """The same out of the checkpoint a model came from, or of another zoo folder of it; raises ConversionError for one
    that cannot be it."""
    folder = resolve_source(source)
    raw, wanted = read_config(folder), (config.source_extras or {}).get("tensors")
    came_from = model_type_of(config.source_config or {}, "source_config")
    if raw.get("model_type") == OWN_TYPE:
        found = of_folder(folder)
    elif file_name(model_type_of(raw, str(folder / "config.json"))) == file_name(came_from):
        incoming = read_incoming(folder, raw)
        checkpoint = incoming.reader.checkpoint
        found = Extras(incoming.manifest, checkpoint, list(incoming.plan.aside))
        if (config.source_extras or {}).get("quantized"):
            found.quantized = kept_quantized.of_source(checkpoint, raw, declared_dtype(raw))
    else:
        raise ConversionError(f"{source} is a {raw.get('model_type')} checkpoint, this model came from {came_from}.")
    there = groups(planner, found.manifest.kept)
    if wanted is not None and there != wanted:
        raise ConversionError(
            f"{source} is not what this model came from: beside the model that held {in_words(wanted)}, and this holds "
            f"{in_words(there) or 'nothing'}."
        )
    return found


def refuse_lost_quantized(extras: Extras, config: ZooConfig, folder: Path) -> None:
    """Raises ConversionError where the stored tensors of quantised weights were kept and are gone."""
    method = (config.source_extras or {}).get("quantized")
    if method and extras.quantized is None:
        raise ConversionError(
            f"{folder} has lost the stored tensors of its source ({method}): give the checkpoint it came from with "
            "--source FOLDER or owner/name, or write plain weights with --dtype bfloat16 (dtype=)."
        )


def refuse_loss(extras: Extras, planner: Planner, config: ZooConfig, folder: Path, to: str) -> None:
    """Raises ConversionError where a model would go back without what its source held."""
    said = config.source_extras
    has = groups(planner, extras.manifest.kept) if extras.checkpoint is not None else {}
    wrapped = family_of(to).section
    # Folders from before the record was kept: a model taken out of a larger one has left something there.
    came_from_it = part_of(config.source_config or {}, wrapped) is not None
    unsaid = said is None and extras.manifest.model_type is None and came_from_it
    if unsaid or (said is not None and has != said["tensors"]):
        lost = in_words(said["tensors"]) if said else f"what a {spoken(to)} holds beside its text model"
        origin = f" of {said['repository']}" if said and "repository" in said else ""
        without = "--text-only" if wrapped else "--without-extras"
        raise ConversionError(
            f"{folder} has lost {lost}{origin}, which zoo does not use and {spoken(to)} has: give the checkpoint it "
            f"came from with --source FOLDER or owner/name, or do without them with {without}."
        )


def text_family(config: ZooConfig, to: str) -> str:
    """The family of the text model inside checkpoints of the family `to`; `to` itself where they hold no other. Raises
    ConversionError for a text model without a family of its own."""
    family = family_of(to)
    if family.section is None:
        return to
    inner = part_of(config.source_config or {}, family.section) or {}
    for name in (inner.get("model_type"), family.reads):
        name = known_name(ALONE.get(name, name or ""))
        if is_known(file_name(name)) and family_of(name).section is None and can_run(name):
            return name
    to = spoken(to)
    raise ConversionError(f"the text model inside {to} has no family of its own: leave it with what it came with.")


def can_run(name: str) -> bool:
    """Whether transformers, or published code, has a language model of a family."""
    runs = any(file_name(one) == file_name(name) for one in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return runs or family_of(name).config_class is not None


def promise_nothing(raw: dict[str, Any]) -> None:
    """A config.json for files without prediction layers."""
    for place in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for key in COUNTS:
            if place.get(key):
                place[key] = 0
