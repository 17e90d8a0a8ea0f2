"""What a field of an exported configuration may hold: the short forms of configuration_zoo/field_kinds.py, as text.

Never shipped itself and never imported by what is: export_config.py takes from this file what a model's fields need.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError

from configuration_zoo.field_needs import UnreadField
from configuration_zoo.first_layers import READ_IN
from configuration_zoo.rope_keys import LEGACY_ROPE_KEYS

LEFT_OUT, GROUPS, MECHANISMS, SHARED_KEYS, SHARED_BLOCKS, LIGHTNING, PER_LAYER_INPUT = {}, *[True] * 6


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
    elif value is not None and value != here and not (value is False and here is None):
        # A switch that is off, where it stands at nothing, is off as well: training libraries set such.
        raise not_here(name, value)


def refuse_unless(config: Any, condition: bool, reason: str, names: Iterable[str]) -> None:
    """Raises UnreadField for any of `names` that is set although its concept is not selected.

    `reason` completes the sentence "field=value only means something with ...". What has one value here is not asked.
    """
    for name in () if condition else names:
        left = name in LEFT_OUT or name.partition(".")[0] in LEFT_OUT
        value = None if left else getattr(config, name)
        if value is not None and value is not False:
            raise UnreadField(name, value, reason)


def said_in(config_dict: dict[str, Any], name: str) -> Any:
    """What a config.json says of a field, or of a key of a dict."""
    group, _, key = name.partition(".")
    value = config_dict.get(group)
    return value.get(key) if key and isinstance(value, dict) else value


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
    }.get(type(kind), (dict, "a dict of numbers"))
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


class Pattern(list):
    """Entries that are repeated until every layer has one, as soon as it is known how many there are."""


def understood(field: dataclasses.Field, value: Any) -> Any:
    """`"3*linear_attention, full_attention"`, or 4 for the same, as entries to repeat; any other value as it is.

    Raises ValueError for what is no such text or number.
    """
    kind, found = field.metadata.get("kind"), Pattern()
    if not getattr(kind, "per_layer", False) or not (isinstance(value, int) or re.search(r"[*,]", str(value))):
        return value
    if isinstance(value, int):
        if not kind.period or isinstance(value, bool) or value < 1:
            raise ValueError(f"{field.name}={value} must be a list with one entry for each layer, or a pattern.")
        return Pattern([kind.period[0]] * (value - 1) + [kind.period[-1]])
    for part in value.split(",") if isinstance(value, str) else ():
        match = re.fullmatch(r"\s*(?:([1-9]\d*)\s*\*\s*)?([\w-]+)\s*", part)
        if match is None or (isinstance(kind.entry, Number) and not match[2].isdecimal()):
            raise ValueError(f"{field.name}={value!r} has {part.strip()!r}: write entries with commas.")
        word = int(match[2]) if isinstance(kind.entry, Number) else match[2]
        found += [None if word == "None" else word] * int(match[1] or 1)
    return found if isinstance(value, str) else value


def takes_words(config_class: type) -> type:
    """A class decorator: what is set is first made what `understood` says, then checked as before."""
    checked = config_class.__setattr__

    def __setattr__(self, name: str, value: Any) -> None:
        if name in config_class.__dataclass_fields__:
            try:
                value = understood(config_class.__dataclass_fields__[name], value)
            except ValueError as error:
                raise StrictDataclassFieldValidationError(field=name, cause=error) from error
        checked(self, name, value)
        if "num_hidden_layers" in vars(self):
            repeat_patterns(self)

    config_class.__setattr__ = __setattr__
    return config_class


def repeat_patterns(config: Any) -> None:
    """Every pattern as a list with one entry for each layer."""
    count = config.num_hidden_layers
    for name, value in [one for one in vars(config).items() if isinstance(one[1], Pattern)]:
        setattr(config, name, [value[index % len(value)] for index in range(count)])


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


def first_layers(values: dict[str, Any], names: list[str], count: int) -> dict[str, Any]:
    """`values` of a config of more layers with the lists over layers (`names`) cut off after `count` of them.

    Raises ValueError for a model in which every layer depends on how many there are.
    """
    before = values["num_hidden_layers"]
    says = f"num_hidden_layers={count} cannot cut a model of {before} layers with"
    if PER_LAYER_INPUT:
        rows = values["hidden_size_per_layer_input"]
        raise ValueError(
            f"{says} hidden_size_per_layer_input={rows}: its second token table holds rows for all of them."
        )
    if LIGHTNING:
        word = values["linear_attention_type"]
        raise ValueError(
            f"{says} linear_attention_type={word!r}: how fast a layer forgets depends on how many there are."
        )
    lists = {name: values[name] for name in names if isinstance(values.get(name), list)}
    cut = values | {name: entries[:count] for name, entries in lists.items() if len(entries) == before}
    if MECHANISMS:
        for name in [name for name in READ_IN if isinstance(cut.get(name), list)]:
            # A mechanism named where no layer reads it may have been that of a layer left out.
            pairs = zip(cut[name], cut["layer_types"], strict=False)
            cut[name] = [mechanism if word in READ_IN[name] else None for mechanism, word in pairs]
    if SHARED_KEYS:
        cut["num_kv_shared_layers"] = max(0, count - (before - values["num_kv_shared_layers"]))
    if SHARED_BLOCKS:
        users = cut["block_type"].count("shared_block") if isinstance(cut["block_type"], list) else count
        cut["num_mem_blocks"] = min(values["num_mem_blocks"], users) or None
    return cut


def build_without_unread(build: Any, values: dict[str, Any], kept: set[str]) -> Any:
    """`build(values)`, without the fields that only layers left out would have read; those in `kept` are refused."""
    while True:
        try:
            return build(values)
        except Exception as error:
            unread = error if isinstance(error, UnreadField) else error.__cause__
            if not isinstance(unread, UnreadField) or unread.field in kept:
                raise
            if GROUPS and "." in unread.field:
                group, _, key = unread.field.partition(".")
                values = {**values, group: {name: one for name, one in values[group].items() if name != key}}
            else:
                values = {name: value for name, value in values.items() if name != unread.field}
