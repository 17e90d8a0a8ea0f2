"""The first layers of a model as a config of its own: fields that only the removed layers read are dropped."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from .field_needs import UnreadField
from .vocabulary import ATTENDING_LAYERS, WITH_RECURRENCE

# Which layers the mechanisms in a per-layer list are for.
READ_IN = {
    "attention_type": ATTENDING_LAYERS,
    "linear_attention_type": WITH_RECURRENCE,
}


def per_layer_names(config_class: type[PreTrainedConfig]) -> list[str]:
    """The fields that can hold one entry for each layer."""
    return [field.name for field in fields(config_class) if getattr(field.metadata.get("kind"), "per_layer", False)]


def first_layers(config_class: type[PreTrainedConfig], values: dict, before: int, count: int) -> dict:
    """`values` of a config of `before` layers with every per-layer list and table cut off after `count` of them.

    Raises ValueError for a model in which every layer depends on how many there are.
    """
    if values.get("hidden_size_per_layer_input"):
        raise ValueError(
            f"num_hidden_layers={count} cannot cut a model of {before} layers with hidden_size_per_layer_input="
            f"{values['hidden_size_per_layer_input']}: its second token table holds rows for all of them."
        )
    if "lightning_attention" in (values.get("linear_attention_type") or ()):
        raise ValueError(
            f"num_hidden_layers={count} cannot cut a model of {before} layers with linear_attention_type="
            f"{values['linear_attention_type']!r}: how fast a layer forgets depends on how many there are."
        )
    lists = {name: values[name] for name in per_layer_names(config_class) if isinstance(values.get(name), list)}
    cut = values | {name: entries[:count] for name, entries in lists.items() if len(entries) == before}
    for name in [name for name in READ_IN if isinstance(cut.get(name), list) and cut.get("layer_types")]:
        # A mechanism named where no layer reads it may have been that of a layer left out.
        pairs = zip(cut[name], cut["layer_types"], strict=False)
        cut[name] = [mechanism if layer_type in READ_IN[name] else None for mechanism, layer_type in pairs]
    if values.get("per_layer_config"):
        cut["per_layer_config"] = {key: own for key, own in values["per_layer_config"].items() if int(key) < count}
    if values.get("num_kv_shared_layers"):
        cut["num_kv_shared_layers"] = max(0, count - (before - values["num_kv_shared_layers"]))
    if values.get("num_mtp_layers") and values.get("mtp"):
        # A type that none of the first layers has: then prediction layers are like the last of these.
        there = {key: cut.get(f"{key}s") or () for key in ("layer_type", "mlp_layer_type")}
        gone = {key for key, types in there.items() if values["mtp"].get(key) not in types}
        cut["mtp"] = {key: value for key, value in values["mtp"].items() if key not in gone}
    if values.get("num_mem_blocks"):
        users = cut["block_type"].count("shared_block") if isinstance(cut["block_type"], list) else count
        cut["num_mem_blocks"] = min(values["num_mem_blocks"], users) or None
    return cut


def build_without_unread(build: Callable, values: dict, kept: set[str]) -> Any:
    """`build(values)`, without the fields that only layers left out would have read; those in `kept` are refused."""
    while True:
        try:
            return build(values)
        except Exception as error:
            field = unread_field(error)
            if field is None or field in kept or not _has(values, field):
                raise
            group, _, key = field.partition(".")
            kept_of_group = (
                {name: value for name, value in (values.get(group) or {}).items() if name != key} if key else {}
            )
            values = {name: value for name, value in values.items() if name not in (field, group)}
            values |= {group: kept_of_group} if key else {}


def _has(values: dict, field: str) -> bool:
    group, _, key = field.partition(".")
    return field in values or (bool(key) and key in (values.get(group) or {}))


def unread_field(error: BaseException | None) -> str | None:
    """The field that an error, or what caused it, says no layer reads; None for any other error."""
    while error is not None and not isinstance(error, UnreadField):
        error = error.__cause__
    return None if error is None else error.field
