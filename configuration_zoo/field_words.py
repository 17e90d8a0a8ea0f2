"""Values as they may be written, before their types are checked: patterns and periods over layers; a flag or a number
where a name is due."""

import re
from dataclasses import Field, fields
from typing import Any, get_args

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from .field_kinds import Choice, Items, Number
from .vocabulary import CHUNKED, LINEAR, SLIDING


class Pattern(list):
    """Entries that are repeated until every layer has one, as soon as it is known how many there are."""

    def for_layers(self, config: PreTrainedConfig) -> list:
        return [self[index % len(self)] for index in range(config.num_hidden_layers)]


class Period(Pattern):
    """A pattern of which only the last entry was said: sliding layers are what the other fields of a config are for."""

    def for_layers(self, config: PreTrainedConfig) -> list:
        others = {"linear_attention_type": LINEAR, "attention_chunk_size": CHUNKED}
        word = next((word for name, word in others.items() if getattr(config, name) is not None), SLIDING)
        return [word if entry == SLIDING else entry for entry in super().for_layers(config)]


def pattern(name: str, text: str, entry: Number | Choice) -> Pattern:
    """`"3*linear_attention, full_attention"` as four entries; raises ValueError for what is no such text."""
    found = Pattern()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:([1-9]\d*)\s*\*\s*)?([\w-]+)\s*", part)
        if match is None or (isinstance(entry, Number) and not match[2].isdecimal()):
            says = f"write entries with commas, such as {example(entry)!r}"
            raise ValueError(f"{name}={text!r} has {part.strip()!r}: {says}.")
        word = int(match[2]) if isinstance(entry, Number) else match[2]
        found += [None if word == "None" else word] * int(match[1] or 1)
    return found


def example(entry: Number | Choice) -> str:
    """A pattern, for a message."""
    return "3*1, 0" if isinstance(entry, Number) else f"3*{entry.names[-1]}, {entry.names[0]}"


def period(name: str, number: int, kind: Items) -> Period:
    """What every `number`-th layer is, and what the others are; raises ValueError where a number says nothing."""
    if not kind.period or isinstance(number, bool) or number < 1:
        what = "or a number, every how many layers one differs" if kind.period else "no number"
        raise ValueError(
            f"{name}={number} must be a list with one entry for each layer, a pattern such as "
            f"{example(kind.entry)!r}, {what}."
        )
    return Period([kind.period[0]] * (number - 1) + [kind.period[-1]])


def understood(field: Field, value: Any) -> Any:
    """`value` as the field stores it; raises ValueError for True, False or a number in place of a name."""
    kind = field.metadata.get("kind")
    per_layer = isinstance(kind, Items) and kind.per_layer
    names = getattr(kind.entry if per_layer else kind, "names", None)
    if isinstance(value, bool) and names is not None:
        raise ValueError(f"{field.name}={value} is no name: use one of {sorted(names)}, or leave it out.")
    if per_layer and isinstance(value, int):
        return period(field.name, value, kind)
    one_for_all = str in get_args(field.type) and not re.search(r"[*,]", str(value))
    if per_layer and isinstance(value, str) and not one_for_all:
        return pattern(field.name, value, kind.entry)
    return value


def takes_words(config_class: type) -> type:
    """A class decorator: what is set is first made what `understood` says, then checked as before."""
    checked = config_class.__setattr__

    def __setattr__(self, name: str, value: Any) -> None:
        field = config_class.__dataclass_fields__.get(name)
        if field is not None and isinstance(value, str | int):
            try:
                value = understood(field, value)
            except ValueError as error:
                raise StrictDataclassFieldValidationError(field=name, cause=error) from error
        checked(self, name, value)
        if isinstance(value, Pattern) and "num_hidden_layers" in vars(self):
            repeat_patterns(self)

    config_class.__setattr__ = __setattr__
    return config_class


def repeat_patterns(config: PreTrainedConfig) -> None:
    """Every pattern as a list with one entry for each layer."""
    for field in fields(config):
        value = vars(config).get(field.name)
        if isinstance(value, Pattern):
            setattr(config, field.name, value.for_layers(config))
