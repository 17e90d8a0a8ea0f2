"""config.json -> transformers' own config object, with what its classes drop or refuse although the file is clear.

Old keys of rotation beside new ones are merged, lists with entries for layers that are not there are read as far as
layers go, and heads whose sizes the file gives need not divide the residual stream.
"""

from contextlib import suppress
from copy import deepcopy
from dataclasses import fields
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo.rope_keys import LEGACY_ROPE_KEYS, merge_rope_keys

from ..errors import BAD_CONFIG, ConversionError, one_line
from .family import Family
from .registry import file_name
from .text_models import holder_of, part_of

TIE = "tie_word_embeddings"


def their_config(raw: dict[str, Any], model_type: str, family: Family) -> PreTrainedConfig:
    """transformers' own config object of a config.json, defaults and old spellings resolved. Raises ConversionError for
    what that class does not accept, or where transformers has none."""
    text = whole = _decoded(raw)
    config_class = class_of(model_type, family)
    try:
        if part_of(whole, family.section) is not None:
            text = _section(whole, family)
        text = _one_rotation(text, config_class)
        if family.prepare:
            text = family.prepare(text)
        theirs = built(_cropped(text, config_class), config_class)
    except BAD_CONFIG as error:
        raise ConversionError(f"config.json is not a valid {model_type} configuration: {one_line(error)}") from error
    switch_off(theirs)
    if family.section and family.ties_at_top:
        setattr(theirs, TIE, is_tied(holder_of(whole, family.section), theirs))
    return theirs


def class_of(model_type: str, family: Family) -> type[PreTrainedConfig]:
    """The config class of a family; raises ConversionError where this transformers has none."""
    return family.config_class or CONFIG_MAPPING[class_key(model_type, family)]


def class_key(model_type: str, family: Family) -> str:
    """transformers' name for the config class of a family; raises ConversionError where this transformers has none."""
    if family.config_class:
        return family.config_class.model_type
    name = family.reads or next((key for key in CONFIG_MAPPING if file_name(key) == file_name(model_type)), None)
    if name not in CONFIG_MAPPING:
        version = transformers.__version__
        raise ConversionError(f"transformers {version} has no config class for {model_type!r}: install a newer one.")
    return name


def _section(whole: dict[str, Any], family: Family) -> dict[str, Any]:
    """The part about the text model; an old key of rotation beside it is one that nothing reads."""
    text = part_of(whole, family.section)
    for key in ("rope_scaling", "rope_theta"):
        if whole.get(key) and whole[key] != text.get(key):
            raise ValueError(f"{key}={whole[key]!r} beside {family.section} is read by nothing: write it into that")
    # A dtype of the whole is that of its text model, unless that has one of its own.
    return {key: whole[key] for key in ("dtype", "torch_dtype") if key in whole} | text


def _one_rotation(text: dict[str, Any], config_class: type) -> dict[str, Any]:
    """`rope_parameters` with the old keys beside them, but for those the class has as fields of its own."""
    parameters = text.get("rope_parameters")
    if not isinstance(parameters, dict):
        return text
    theirs = [key for key in LEGACY_ROPE_KEYS if key in text and key in config_class.__dataclass_fields__]
    layer_types = [name for name, table in parameters.items() if isinstance(table, dict)]
    merged = merge_rope_keys({key: value for key, value in text.items() if key not in theirs}, layer_types)
    return merged | {key: text[key] for key in theirs}


def _cropped(text: dict[str, Any], config_class: type) -> dict[str, Any]:
    """Lists by layer as far as there are layers: some files say more, of layers that predict further tokens."""
    names = [alias for alias, name in config_class.attribute_map.items() if name == "num_hidden_layers"]
    depth = next((text[name] for name in ("num_hidden_layers", *names) if isinstance(text.get(name), int)), None)
    lengths = {len(text[key]) for key in ("layer_types", "mlp_layer_types") if isinstance(text.get(key), list)}
    if depth is None or not lengths or max(lengths) <= depth:
        return text
    return {
        key: value[:depth] if isinstance(value, list) and len(value) in lengths - {depth} else value
        for key, value in text.items()
    }


def built(text: dict[str, Any], config_class: type) -> PreTrainedConfig:
    """The object of the class, with heads of a width of their own where the file gives one."""
    width, heads = (text.get(key) for key in ("hidden_size", "num_attention_heads"))
    if text.get("head_dim") and isinstance(width, int) and isinstance(heads, int) and heads and width % heads:
        # A check from before files said how wide a head is; ZooConfig makes those that matter.
        unchecked = {"validate_architecture": lambda self: None}
        config_class = strict(type(config_class.__name__, (config_class,), unchecked))
    return config_class.from_dict(deepcopy(text))


def switch_off(config: PreTrainedConfig) -> None:
    """A switch that may be None is off then: their code asks whether it is true."""
    for field in fields(config):
        if field.type == bool | None and getattr(config, field.name) is None:
            setattr(config, field.name, False)


def is_tied(whole: dict[str, Any], text: PreTrainedConfig) -> bool:
    """What the class of a whole makes of the flags beside its text model and in it; without a class, either of them."""
    with suppress(*BAD_CONFIG):
        return bool(getattr(CONFIG_MAPPING[whole["model_type"]].from_dict(deepcopy(whole)), TIE, False))
    return bool(whole.get(TIE, getattr(text, TIE, False)))


def _decoded(value: Any) -> Any:
    """A copy with the numbers that transformers writes as {"__float__": "Infinity"}, since JSON has no infinity."""
    if isinstance(value, dict):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _decoded(v) for k, v in value.items()}
    return [_decoded(entry) for entry in value] if isinstance(value, list) else deepcopy(value)
