"""What config.json says of a model: what differs from the defaults and cannot be derived, and what engines look for."""

import re
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import MISSING, Field, fields
from typing import Any

from transformers import PreTrainedConfig

from .field_settings import by_concept, described, nested, settings_of, spread
from .version import __version__

# Written whatever they are: what serving engines, quantizers and the Hub's pages look for without building a config.
ALWAYS = (
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_act", "hidden_size",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "rope_parameters", "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Whether two values are written alike: 1 and 1.0 are not."""
    return repr(one) == repr(other)


def default_of(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def own_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """{name: default} of the fields of zoo itself; those of every transformers config are left to transformers.

    A key of a dict of settings is a field of its own here. They stand in the order of the concepts.
    """
    theirs, every = {field.name for field in fields(PreTrainedConfig)}, described(config_class)
    return {name: default_of(every[name]) for name in by_concept(config_class) if name not in theirs}


def written(config: PreTrainedConfig, whole: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds, and `repr` shows, of a config whose keys are `whole`: see `differences`."""
    return differences(config, whole) | {"zoo_version": __version__}


def differences(config: PreTrainedConfig, whole: dict[str, Any]) -> dict[str, Any]:
    """`whole` (every key of a config) without None and without what a config of the remaining keys has of itself.

    A config that cannot be built again, because it was changed after it was made, is written in full.
    """
    groups = settings_of(type(config))
    defaults, values = own_defaults(type(config)), spread(whole, groups)
    try:
        kept = _kept(config, values, defaults)
        if others := _others(config, values, defaults, kept):
            kept |= others
            if _others(config, values, defaults, kept):
                return whole
    except Exception:  # Whatever was put into it; to print a config never fails.
        return whole
    said = {key: value for key, value in values.items() if key not in defaults and value is not None}
    return nested(said | {key: values[key] for key in values if key in kept})


def _kept(config, values: dict[str, Any], defaults: dict[str, Any]) -> set[str]:
    """The fields to write: derivation runs on ever more of them until it gives the config again."""
    kept = {name for name in ALWAYS if name in defaults and values.get(name) is not None}
    # A default that is a value is not derived: what differs from it was given.
    kept |= {name for name, value in defaults.items() if value is not None and not same(values.get(name), value)}
    view = config.outside_layers()
    while True:
        derived = copy(view)
        vars(derived).update(_attributes(config, defaults | {name: values.get(name) for name in kept}))
        with suppress(ValueError):  # A width that does not divide before the field that says it is among them.
            derived._resolve()
        others = [name for name in defaults if not same(getattr(derived, name), values.get(name)) and name not in kept]
        if not others:
            return kept
        # What follows from the first of them comes with it.
        kept.add(others[0])


def _others(config, values: dict[str, Any], defaults: dict[str, Any], kept: set[str]) -> set[str]:
    """The fields that a config of the kept keys has otherwise; it is built as one is read, its checks left out."""
    again = object.__new__(type(config))
    every = {field.name: default_of(field) for field in fields(config)}
    vars(again).update(_attributes(config, every | {name: values[name] for name in kept if name in values}))
    again.__post_init__(**{name: deepcopy(values[name]) for name in ("per_layer_config",) if name in values})
    there = spread(again.to_dict(), settings_of(type(config)))
    return {name for name in (*defaults, "per_layer_config") if not same(there.get(name), values.get(name))}


def _attributes(config, values: dict[str, Any]) -> dict[str, Any]:
    """Values of fields as a config has them: copies, every dict of settings with all of its keys."""
    found = deepcopy(nested(values))
    return found | {name: kind.filled(found.get(name)) for name, kind in settings_of(type(config)).items()}


def completed(config_class: type[PreTrainedConfig], values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config.json with what is derived from them beside them; rotations stay as they are said."""
    whole = config_class(**deepcopy(values)).to_dict()
    names = {field.name for field in fields(config_class)} - {"rope_parameters"}
    return {name: value for name, value in whole.items() if name in names} | values


def about_unknown(notes: dict[str, Any], version: Any) -> list[str]:
    """What to say of keys of a config.json that are no fields: one sentence if a newer zoo wrote it, else of each."""
    if notes and isinstance(version, str) and _numbers(version) > _numbers(__version__):
        return [
            f"config.json was written by zoo {version} and has {', '.join(sorted(notes))}, unknown to zoo "
            f"{__version__}: kept, but without effect here, so the model may be another. Update zoo, or load the "
            "folder with trust_remote_code=True."
        ]
    says = "which is not a field of ZooConfig: kept, but it does nothing."
    return [f"config.json has {key}={value!r}, {says}" for key, value in notes.items()]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
