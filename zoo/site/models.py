"""The models that the site shows, each as plain JSON: what `zoo inspect` counts, and what `zoo diff` compares."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of, spread
from configuration_zoo.presets import presets
from conversion.engine.catalog import facts, model_type_of, usual_config
from conversion.engine.registry import known_families
from description_zoo.difference import TOTALS, folded, kinds_of_layer
from description_zoo.flops import flops
from description_zoo.layers import GATES
from description_zoo.measure import cache_totals, empty_model, measure, pattern_of

from ..inspection import config_of

# Tokens of context at which caches and operations are counted, where a model can have so many.
CONTEXTS = (1024, 8192, 131072)
KINDS = {"yours": "yours", "presets": "published models", "families": "families"}


@dataclass(frozen=True)
class Shown:
    """A model with a name; `kind` is a key of KINDS, `about` says what it is and where it was published."""

    kind: str
    name: str
    config: ZooConfig
    about: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


def shown_models(yours: Sequence[str] = ()) -> Iterator[Shown]:
    """`yours` (folders, config.json, Hub ids or presets) first, then all presets, then all families; raises UserError,
    or ValueError with what is wrong with one of `yours`."""
    taken = set()
    for model in yours:
        name = own_name(model)
        while name in taken:
            name += "-2"
        taken.add(name)
        yield Shown("yours", name, config_of(model), f"`{model}`")
    for name, entry in presets().items():
        about = f"{entry.source}. {entry.note}" if entry.note else f"{entry.source}."
        yield Shown("presets", name, ZooConfig.preset(name), about.replace("..", "."))
    for name in known_families():
        yield Shown("families", model_type_of(name), usual_config(name), facts(name)["models"])


def own_name(model: str) -> str:
    """`models/mine/config.json` -> `mine`; a name that is safe in a file's name."""
    path = Path(model)
    stem = path.stem if path.suffix in (".json", ".gguf") else path.name
    if stem == "config":
        path = path.resolve().parent
    name = path.resolve().name if stem in ("config", "", "..") else stem
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-") or "model"


def entry_of(shown: Shown) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the site keeps of a model, the report of `measure`)."""
    config = shown.config
    model = empty_model(config)
    report = measure(config, model)
    lengths = [length for length in CONTEXTS if length <= config.max_position_embeddings]
    lengths = lengths or [config.max_position_embeddings]
    entry = {
        "key": shown.key,
        "kind": shown.kind,
        "name": shown.name,
        "about": shown.about,
        "pattern": pattern_of(report["layers"]),
        "words": words_of(config, report),
        "totals": {name: report[name] for name in TOTALS}
        | {name: report[name] for name in ("max_position_embeddings", "window_bytes", "state_bytes")}
        | {"cache_bytes_per_token": report["cache_bytes_per_token"]},
        "cache": {str(length): cache_totals(report, length)["bytes"] for length in lengths},
        "flops": {str(length): flops(model, length) for length in lengths},
        "layers": [{"layers": where} | layer for where, layer in kinds_of_layer(report["layers"])],
        "flags": {name: value for name, value in folded(config).items() if value is not None},
        "stated": stated(config),
    }
    return json.loads(json.dumps(entry)), report


def stated(config: ZooConfig) -> list[str]:
    """The fields that a model sets, in the order of the config: of these alone `zoo diff` speaks."""
    names = spread(config.to_diff_dict(), settings_of(ZooConfig))
    return [name for name in described(ZooConfig) if name in names]


def words_of(config: ZooConfig, report: dict[str, Any]) -> list[str]:
    """What a model can be found by in the gallery."""
    layers = report["layers"]
    features = {said for layer in layers for said in layer["features"]}
    found = {
        "latent attention": "latent" in config.attentions,
        "one key-value head": any("/1 x" in layer["mixer"].partition(",")[0] for layer in layers),
        "windows": any(layer["window"] for layer in layers),
        "recurrences": any(layer["context"] == "state" for layer in layers),
        "experts": any(layer["experts"] for layer in layers),
        "NoPE layers": any(layer["positions"] == "NoPE" for layer in layers),
        "QK norm": any(word.startswith("QK") for word in features),
        "sinks": "sinks" in features,
        "gated attention": bool(features & {*GATES.values()}),
        "indexed attention": any(layer["layer_type"] == "indexed_attention" for layer in layers),
        "parallel layers": any("parallel" in layer["block"] for layer in layers),
    }
    return [word for word, here in found.items() if here]
