"""Fields that are dicts of settings, each key with a kind, a default and a need of its own, like a field.

A key is named `precision.norm` wherever a field is named by its name: in messages, in checks, in `getattr` and
`setattr` of a config. Model code reads `config.precision["norm"]`; every key is there.
"""

from dataclasses import Field, fields
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from .field_kinds import Settings


@cache
def settings_of(config_class: type[PreTrainedConfig]) -> dict[str, Settings]:
    """{field: its kind} of the fields that are dicts of settings."""
    kinds = {field.name: field.metadata.get("kind") for field in fields(config_class)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, Settings)}


@cache
def described(config_class: type[PreTrainedConfig]) -> dict[str, Field]:
    """{name: field} of everything that can be set by itself: keys stand in place of their dict."""
    found = {}
    for field in fields(config_class):
        kind = field.metadata.get("kind")
        keys = kind.keys if isinstance(kind, Settings) else None
        found |= {field.name: field} if keys is None else {f"{field.name}.{key}": one for key, one in keys.items()}
    return found


@cache
def choices_of(config_class: type[PreTrainedConfig]) -> set[str]:
    """Every name that some field takes."""
    kinds = [field.metadata.get("kind") for field in described(config_class).values()]
    return {name for kind in kinds for name in getattr(getattr(kind, "entry", kind), "names", ())}


@cache
def by_concept(config_class: type[PreTrainedConfig]) -> tuple[str, ...]:
    """The names of `described` as the groups of the class follow each other: what chooses before what it chooses."""
    order = [name for group in config_class.__mro__ for name in vars(group).get("__annotations__", ())]
    return tuple(sorted(described(config_class), key=lambda name: order.index(name.partition(".")[0])))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"precision.norm": x}` as `{"precision": {"norm": x}}`, beside what that dict already has."""
    found = {name: value for name, value in values.items() if "." not in name}
    for name in values:
        group, _, key = name.partition(".")
        if key:
            found[group] = {**(found.get(group) or {}), key: values[name]}
    return found


def spread(values: dict[str, Any], groups: dict[str, Settings]) -> dict[str, Any]:
    """The inverse of `nested`; a dict of settings that is no dict stays, to be refused."""
    found = {}
    for name, value in values.items():
        if name in groups and isinstance(value, dict):
            found |= {f"{name}.{key}": entry for key, entry in value.items()}
        elif name not in groups or value is not None:
            found[name] = value
    return found


def set_fields(config: PreTrainedConfig, values: dict[str, Any]) -> None:
    """Sets fields and keys of dicts of settings, each dict once."""
    groups = {}
    for name, value in values.items():
        group, _, key = name.partition(".")
        if key:
            groups.setdefault(group, {**getattr(config, group)})[key] = value
        else:
            setattr(config, name, value)
    for group, value in groups.items():
        setattr(config, group, value)


class SettingsAccess:
    """Every dict of settings has all of its keys; `getattr(config, "precision.norm")` is one of them."""

    def __setattr__(self, name: str, value: Any) -> None:
        group, _, key = name.partition(".")
        if key:
            name, value = group, {**getattr(self, group), key: value}
        field = type(self).__dataclass_fields__.get(name)
        kind = field.metadata.get("kind") if field is not None else None
        super().__setattr__(name, kind.filled(value) if isinstance(kind, Settings) else value)


def add_key_properties(config_class: type[PreTrainedConfig]) -> None:
    """Makes every key of a dict of settings a property of the class under its own name, for code that reads fields by
    name."""
    for group, kind in settings_of(config_class).items():
        for key in kind.keys:
            setattr(
                config_class, f"{group}.{key}", property(lambda self, group=group, key=key: getattr(self, group)[key])
            )
