"""What a field of an exported configuration may hold: the short forms of configuration_zoo/field_kinds.py, as text.

Never shipped itself and never imported by what is: export_config.py takes from this file what a model's fields need.
"""

import dataclasses
import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError

from configuration_zoo.field_needs import UnreadField
from configuration_zoo.field_words import pattern, period
from configuration_zoo.rope_keys import LEGACY_ROPE_KEYS

LEFT_OUT, STANDARD = {}, {}


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence with the closest of the known names, "" where none is close."""
    matches = get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def not_here(name: str, value: Any) -> ValueError:
    return ValueError(
        f"{name}={value!r} is of a concept whose code is not in this folder: `zoo export FOLDER --all` writes the code "
        "of every concept, and the installed package (modeling-zoo) has it."
    )


def refuse_other(name: str, value: Any) -> None:
    """Raises ValueError for a field that is left out, unless it is given the value that it stands at."""
    here = LEFT_OUT[name]
    if isinstance(here, dict) and isinstance(value, dict):
        for key in [key for key in value if value[key] not in (None, here.get(key))]:
            raise not_here(f"{name}.{key}", value[key])
    elif value is not None and value != here:
        raise not_here(name, value)


def refuse_unless(config: Any, condition: bool, reason: str, names: Iterable[str]) -> None:
    """Raises UnreadField for any of `names` that is set although its concept is not selected.

    `reason` completes the sentence "field=value only means something with ...". What has one value here is not asked.
    """
    for name in () if condition else [name for name in names if name not in STANDARD]:
        left = name in LEFT_OUT or name.partition(".")[0] in LEFT_OUT
        value = None if left else getattr(config, name)
        if value is not None and value is not False:
            raise UnreadField(name, value, reason)


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number, whole or not, within bounds: more than `above` or at least `least`, and so on."""

    whole: bool = False
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    nonzero: bool = False

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number.")
        if self.above is not None and value <= self.above:
            raise ValueError(f"{name}={value} must be greater than {self.above}.")
        if self.least is not None and value < self.least:
            raise ValueError(f"{name}={value} must not be {'negative' if self.least == 0 else f'below {self.least}'}.")
        if self.below is not None and value >= self.below:
            raise ValueError(f"{name}={value} must be below {self.below}.")
        if self.most is not None and value > self.most:
            raise ValueError(f"{name}={value} must be at most {self.most}.")
        if self.nonzero and value == 0:
            raise ValueError(f"{name}=0 would erase what it multiplies: use a number other than 0.")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        if value not in self.names:
            allowed = sorted(self.names)
            raise ValueError(f"{name}={value!r} is not one of {allowed}.{nearest(str(value), allowed)}")


@dataclasses.dataclass(frozen=True)
class Here:
    """Some values, of all that zoo knows: the code for others is not in this folder."""

    names: tuple

    def check(self, name: str, value: Any) -> None:
        if value not in self.names:
            raise not_here(name, value)


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of `count` entries of one kind, or of one for each layer; None stands for an entry that is open."""

    entry: Number | Choice | Here
    count: int | None = None
    per_layer: bool = False
    period: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, list):
            return self.entry.check(name, value)
        if not value:
            raise ValueError(f"{name}=[] is empty: give its entries or leave it out.")
        if self.count is not None and len(value) != self.count:
            raise ValueError(f"{name}={value} must have {self.count} entries.")
        for index, entry in enumerate(value):
            if entry is not None:
                self.entry.check(f"{name}[{index}]", entry)


@dataclasses.dataclass(frozen=True)
class Table:
    """A dict whose numbers, however deep, are finite."""

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number.")
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in entries:
            self.check(f"{name}[{key!r}]", entry)


def setting(kind: Any, default: Any = None) -> Any:
    """A dataclass field whose values are None or of `kind`; a bad one is refused with the field's name."""

    def validate(value: Any) -> None:
        if value is not None:
            kind.check(made.name, value)

    made = dataclasses.field(default=default, metadata={"kind": kind, "validator": validate})
    return made


def only(value: Any) -> Any:
    """A field that has one value in this folder, because the code for others is not here."""
    return setting(Here((value,)), value)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, name: str, value: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Settings:
    """A dict whose keys are known, each described as a field is; None stands for an entry that is left out."""

    keys: dict[str, dataclasses.Field]

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name}={value!r} must be a dict; its keys are {sorted(self.keys)}.")
        for key, entry in value.items():
            if key not in self.keys:
                raise ValueError(f"{name}.{key}={entry!r} is not a key of {name}.{nearest(str(key), self.keys)}")
            if entry is not None:
                kind = self.keys[key].metadata["kind"]
                check_type(kind, f"{name}.{key}", entry)
                kind.check(f"{name}.{key}", entry)

    def filled(self, value: Any) -> Any:
        """`value` with every key: what it leaves out is the key's default."""
        if not isinstance(value, dict | None):
            return value
        given = {key: entry for key, entry in (value or {}).items() if entry is not None or key not in self.keys}
        return {key: field.default for key, field in self.keys.items()} | given


def check_type(kind: Any, name: str, value: Any) -> None:
    """Raises ValueError for an entry of another type than its kind: what the annotation of a field says of a field."""
    if isinstance(kind, Here):
        return
    if isinstance(kind, Items):
        if not isinstance(value, list):
            raise ValueError(f"{name}={value!r} must be a list.")
        for index, entry in enumerate(value):
            if entry is not None:
                check_type(kind.entry, f"{name}[{index}]", entry)
        return
    types, words = {
        Number: (int if getattr(kind, "whole", False) else (int, float), "a number"),
        Choice: (str, "a name"),
        Flag: (bool, "True or False"),
    }[type(kind)]
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        whole = "a whole number" if types is int else words
        names = f", one of {sorted(kind.names)}" if isinstance(kind, Choice) else ""
        raise ValueError(f"{name}={value!r} must be {whole}{names}.")


def settings(group: str, **keys: dataclasses.Field) -> Any:
    """A dict of settings; its keys that are left out of this folder have one value."""
    left = {name.partition(".")[2]: only(value) for name, value in LEFT_OUT.items() if name.startswith(f"{group}.")}
    return setting(Settings(keys | left))


def per_layer(*words: str, default: str | None = None, period: tuple[str, ...] = ()) -> Any:
    """One entry for each layer, of the words that this folder has the code for."""
    return setting(Items(Here(words), per_layer=True, period=period), default)


def understood(field: dataclasses.Field, value: Any) -> Any:
    """A pattern or a period over layers as the field stores it."""
    kind = field.metadata.get("kind")
    if getattr(kind, "per_layer", False) and isinstance(value, int):
        return period(field.name, value, kind)
    if getattr(kind, "per_layer", False) and isinstance(value, str) and ("," in value or "*" in value):
        return pattern(field.name, value, kind.entry)
    return value


def check_lengths(config: Any) -> None:
    """Raises StrictDataclassFieldValidationError for a per-layer list whose length is not num_hidden_layers."""
    for field in dataclasses.fields(config):
        value, count = getattr(config, field.name), config.num_hidden_layers
        if isinstance(value, list) and getattr(field.metadata.get("kind"), "per_layer", False) and len(value) != count:
            says = f"{field.name} has {len(value)} entries but num_hidden_layers={count}: "
            error = ValueError(f"{says}a per-layer list needs one entry for each layer.")
            raise StrictDataclassFieldValidationError(field=field.name, cause=error) from error


def merge_rope_scaling(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the keys of transformers 4 in `rope_parameters`; raises ValueError where the two disagree."""
    old = {key: given[key] for key in LEGACY_ROPE_KEYS if given.get(key) not in (None, {})}
    table = dict(given.get("rope_parameters") or {})
    if not table:
        if "rope_type" in old:
            raise ValueError(f"rope_type={old['rope_type']!r} stands in rope_parameters, with what belongs to it.")
        return given
    scaling = old.pop("rope_scaling", {})
    if not isinstance(scaling, dict):
        raise ValueError(f"rope_scaling={scaling!r} must be a dict; rope_parameters says the same and more.")
    if scaling and (kind := scaling.get("rope_type", scaling.get("type"))) is None:
        raise ValueError(f"rope_scaling={scaling!r} has no rope_type.")
    if scaling:
        scaling = {key: value for key, value in scaling.items() if key != "type"} | {"rope_type": kind}
        if table.get("rope_type", table.pop("type", "default")) == "default":
            table["rope_type"] = kind
    for name, key, value in [(f"rope_scaling: {key}", key, scaling[key]) for key in scaling] + [
        (k, k, old[k]) for k in old
    ]:
        if (here := table.setdefault(key, value)) != value:
            says = f"{name}={value!r} and rope_parameters: {key}={here!r} disagree: "
            raise ValueError(f"{says}take one of them out of the configuration.")
    return {key: given[key] for key in given if key not in LEGACY_ROPE_KEYS} | {"rope_parameters": table}
