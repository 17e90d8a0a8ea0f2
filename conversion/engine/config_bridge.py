"""Configs there and back: config.json of a family <-> ZooConfig, with nothing lost and nothing guessed.

The reverse conversion starts from the config.json that came in (`source_config`) and changes only what has changed
since; a model that never came from anywhere starts from the defaults of the family's config class. Either way the
result is imported again, and a field of ZooConfig that would come out different is refused by name.
"""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import fields
from typing import Any, get_args

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from configuration_zoo import ZooConfig
from configuration_zoo.field_needs import UnreadField, is_read
from configuration_zoo.field_settings import settings_of, spread
from description_zoo.architecture import architecture
from description_zoo.heads import CAUSAL, HEADS, head_of_own

from ..errors import BAD_CONFIG, ConversionError, one_line
from ..formats.schemes import without_scheme
from .culprits import with_culprit
from .family import Family
from .heads import head_of, labels_of
from .prediction import promise, said_by
from .registry import OWN_TYPE, family_of, file_name, model_type_of, spoken, variant_of
from .text_models import holder_of, part_of, with_part
from .their_config import TIE, class_key, class_of, their_config

# Older spellings that would be merged into, or win over, the key they stand for.
_OLD_SPELLINGS = {
    "rope_parameters": (
        "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq",
    ),
    "dtype": ("torch_dtype",),
}  # fmt: skip
# What transformers before 5.19 calls layers that newer ones, and zoo, call otherwise.
_OLD_LAYER_TYPES = {"deepseek_sparse_attention": "indexed_attention"}


def import_config(raw: dict[str, Any], **overrides: Any) -> ZooConfig:
    """config.json of any known family (or zoo's own) -> ZooConfig; `overrides` are ZooConfig fields."""
    overrides = spread(overrides, settings_of(ZooConfig))
    if raw.get("model_type") == OWN_TYPE:
        return _named(raw, lambda keys: _build(keys | overrides, OWN_TYPE))
    model_type = model_type_of(raw)
    family = family_of(model_type)
    raw = without_scheme(raw)
    place = _place(raw, family)
    whole = (lambda keys: keys) if place is raw else (lambda keys: with_part(raw, family.section, keys))
    return _named(place, lambda keys: imported(whole(keys), model_type, family, overrides))


def _named(keys: dict[str, Any], build: Callable[[dict[str, Any]], ZooConfig]) -> ZooConfig:
    """`build(keys)`; raises ConversionError that gives the key it is about."""

    def complaint(some: dict[str, Any]) -> str | None:
        try:
            build(some)
        except BAD_CONFIG as error:
            return one_line(error)
        return None

    try:
        return build(keys)
    except BAD_CONFIG as error:
        raise ConversionError(with_culprit(one_line(error), keys, complaint)) from error


def _place(raw: dict[str, Any], family: Family) -> dict[str, Any]:
    """The part of a config.json that is about the text model."""
    part = part_of(raw, family.section)
    return raw if part is None else part


def imported(raw: dict[str, Any], model_type: str, family: Family, overrides: dict[str, Any]) -> ZooConfig:
    """A config.json of a family -> ZooConfig; raises ConversionError for what ZooConfig refuses."""
    theirs = their_config(raw, model_type, family)
    if not theirs.num_hidden_layers:
        raise ConversionError(f"num_hidden_layers={theirs.num_hidden_layers!r} must be greater than 0.")
    arguments = {ours: getattr(theirs, name) for name, ours in family.fields.items() if hasattr(theirs, name)}
    arguments |= family.fixed
    if family.derive:
        arguments |= family.derive(theirs)
    if layer_types := arguments.get("layer_types"):
        arguments["layer_types"] = [_OLD_LAYER_TYPES.get(name, name) for name in layer_types]
    foreign = arguments.keys() - overrides.keys()
    head = head_of(raw, family.architecture)
    arguments |= {"architectures": [head]} | labels_of(theirs, head)
    if getattr(theirs, "is_causal", True) is False:
        # Under this key every mask of transformers lets tokens see what follows: embedding models.
        arguments["use_bidirectional_attention"] = True
    return _build(arguments | {"source_config": deepcopy(raw)} | overrides, model_type, foreign)


def export_config(config: ZooConfig, to: str, **overrides: Any) -> dict[str, Any]:
    """ZooConfig -> config.json of the family `to`; raises ConversionError for what `to` cannot express.

    `overrides` are fields in which the model is known to differ from its own config.json.
    """
    source = config.source_config
    to = variant_of(to, source)
    family = family_of(to)
    same = source is not None and file_name(model_type_of(source)) == file_name(to)
    try:
        overrides = overrides if same else {}
        raw = _changed_source(config, family, overrides) if same else _from_defaults(config, to, family)
        _say_head(raw, config, to, family, overrides)
        if config.num_mtp_layers != overrides.get("num_mtp_layers", 0):
            promise(_place(raw, family), config.num_mtp_layers, _spellings(to, family))
        unsaid = {name: value for name, value in overrides.items() if name not in ("num_mtp_layers", "mtp")}
        again = import_config(raw, **unsaid, **said_by(config, family.rules_for(config), raw))
    except BAD_CONFIG as error:
        raise ConversionError(f"{spoken(to)} cannot express this model: {_why(config, to, error)}") from error
    if differing := architecture_differences(config, again):
        raise ConversionError(
            f"{spoken(to)} cannot express "
            + ", ".join(f"{name}={ours!r} (it would become {theirs!r})" for name, ours, theirs in differing)
            + ": choose another family or change that."
        )
    return raw


def _why(config: ZooConfig, to: str, error: BaseException) -> str:
    """The error's own sentence; where code stumbled over what the model has not, the names of that."""
    said = one_line(error)
    if isinstance(error, ValueError) and "NoneType" not in said and "unsupported operand" not in said:
        return said
    try:
        usual = architecture(import_config({"model_type": to}))
    except ConversionError:
        usual = {}
    ours = architecture(config)
    lacking = [name for name, value in usual.items() if value is not None and ours.get(name) is None]
    if not lacking:
        return f"it has other parts than a {spoken(to)} ({said.removesuffix('.')})."
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    return f"a {spoken(to)} has {', '.join(lacking[:4])}{more}, which this model has not. Choose another family."


def architecture_differences(one: ZooConfig, other: ZooConfig) -> list[tuple[str, Any, Any]]:
    """(field, its value in one, in the other) for every architectural field that differs."""
    left, right = architecture(one), architecture(other)
    return [(name, left.get(name), right.get(name)) for name in left | right if left.get(name) != right.get(name)]


def _build(arguments: dict[str, Any], model_type: str, foreign: Iterable[str] = ()) -> ZooConfig:
    """ZooConfig of some fields; those of `foreign` that no layer would read are left out, as a file of another family
    has them whatever its layers are."""
    try:
        return ZooConfig.from_dict(arguments)
    except BAD_CONFIG as error:
        cause = error.__cause__
        if isinstance(cause, UnreadField) and cause.field in foreign:
            read = {name: value for name, value in arguments.items() if name != cause.field}
            config = _build(read, model_type, read.keys() & foreign)
            # Left out, a field says its default: of that, too, nothing may depend.
            if not is_read(config, cause.field):
                return config
        raise ConversionError(f"this {model_type} configuration is not a valid ZooConfig: {one_line(error)}") from error


def _spellings(to: str, family: Family) -> set[str]:
    """Every key that transformers' config class of a family reads."""
    config_class = class_of(to, family)
    return {field.name for field in fields(config_class)} | set(config_class.attribute_map)


def _back(config: ZooConfig, family: Family) -> dict[str, Any]:
    """Their keys from a ZooConfig, by the inverse of `fields` and by `restore`."""
    if config.is_heterogeneous:
        # What layers have in common; the comparison after the export sees whether the family says the rest.
        config = deepcopy(config)
        config.allow_global_per_layer_attribute_access = True
    keys = {name: getattr(config, ours) for name, ours in family.fields.items()}
    if keys.get("output_router_logits", True) is None:
        # In training alone, which no other class can say: as the source says, or their default.
        del keys["output_router_logits"]
    keys |= family.restore(config) if family.restore else {}
    return {name: _plain(value) for name, value in keys.items()}


def _changed_source(config: ZooConfig, family: Family, overrides: dict) -> dict[str, Any]:
    raw = deepcopy(config.source_config)
    before, after = _back(import_config(raw, **overrides), family), _back(config, family)
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    place = _place(raw, family)
    aliases = class_of(model_type_of(raw), family).attribute_map
    for name, value in changed.items():
        where = holder_of(raw, family.section) if name == TIE and family.ties_at_top else place
        where = raw if name == "dtype" and not {"dtype", "torch_dtype"} & place.keys() else where
        _set(where, name, value, aliases)
    return raw


def _say_head(raw: dict[str, Any], config: ZooConfig, to: str, family: Family, overrides: dict) -> None:
    """Writes the class and the labels of the model's head into a config.json that says otherwise."""
    head = head_of_own(config)
    if head != (overrides.get("architectures") or [head_of(raw, family.architecture)])[0]:
        name = family.architecture if head == CAUSAL else None
        name = name or (None if family.section else HEADS[head].class_for(class_key(to, family)))
        if name is None:
            raise ValueError(f"transformers has no {HEADS[head].ending} class for it.")
        raw["architectures"] = [name]
    labels, before = labels_of(config, head), labels_of(their_config(raw, to, family), head)
    for key in labels.keys() | before.keys():
        if labels.get(key) != before.get(key):
            raw[key] = deepcopy(labels.get(key))
            raw.pop("num_labels", None)


def _set(raw: dict[str, Any], name: str, value: Any, aliases: dict[str, str]) -> None:
    """Writes a key under the spelling the file already uses, and removes its other spellings."""
    real = aliases.get(name, name)
    spellings = [real, *(alias for alias, target in aliases.items() if target == real), *_OLD_SPELLINGS.get(real, ())]
    used = next(
        (spelling for spelling in spellings if spelling in raw and spelling not in _OLD_SPELLINGS.get(real, ())), real
    )
    for spelling in spellings:
        raw.pop(spelling, None)
    raw[used] = value


def _from_defaults(config: ZooConfig, to: str, family: Family) -> dict[str, Any]:
    if family.section:
        raise ConversionError(
            f"a {spoken(to)} checkpoint is more than a text model: "
            "only a model converted from one can be converted back."
        )
    reads = class_key(to, family)
    config_class, keys = class_of(to, family), _back(config, family)
    # What no layer has, but their class wants a value of, is as it comes.
    missing = {field.name for field in fields(config_class) if type(None) not in get_args(field.type)}
    keys = {name: value for name, value in keys.items() if value is not None or name not in missing}
    raw = json.loads(config_class.from_dict(keys).to_json_string())
    if config.use_bidirectional_attention and not {"is_decoder", "use_bidirectional_attention"} & keys.keys():
        raw["is_causal"] = False
    architecture = family.architecture or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(reads)
    return raw | {"model_type": family.reads and to or reads, "architectures": [architecture] if architecture else None}


def _plain(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else deepcopy(value)
