"""Values as they may be written, before their types are checked: patterns over layers; a flag where a name is due."""

import re
from dataclasses import fields
from typing import Any, get_args

from huggingface_hub.errors import StrictDataclassFieldValidationError

from .field_kinds import Choice, Items, Number


class Pattern(list):
    """Entries that are repeated until every layer has one, as soon as it is known how many there are."""

    def for_layers(self, count: int) -> list:
        return [self[index % len(self)] for index in range(count)]


def pattern(name: str, text: str, entry: Number | Choice) -> Pattern:
    """`"3*linear_attention, full_attention"` as four entries; raises ValueError for what is no such text."""
    found = Pattern()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:([1-9]\d*)\s*\*\s*)?([\w-]+)\s*", part)
        if match is None or (isinstance(entry, Number) and not match[2].isdecimal()):
            example = "3*1, 0" if isinstance(entry, Number) else f"3*{entry.names[-1]}, {entry.names[0]}"
            raise ValueError(f"{name}={text!r} has {part.strip()!r}: write entries with commas, such as {example!r}.")
        word = int(match[2]) if isinstance(entry, Number) else match[2]
        found += [None if word == "None" else word] * int(match[1] or 1)
    return found


def understood(field, value: Any) -> Any:
    """`value` as the field stores it; raises ValueError for True or False in the place of a name."""
    kind = field.metadata.get("kind")
    per_layer = isinstance(kind, Items) and kind.per_layer
    names = getattr(kind.entry if per_layer else kind, "names", None)
    if isinstance(value, bool) and names is not None:
        raise ValueError(f"{field.name}={value} is no name: use one of {sorted(names)}, or leave it out.")
    one_for_all = str in get_args(field.type) and not re.search(r"[*,]", str(value))
    if per_layer and isinstance(value, str) and not one_for_all:
        return pattern(field.name, value, kind.entry)
    return value


def takes_words(config_class):
    """A class decorator: what is set is first made what `understood` says, then checked as before."""
    checked = config_class.__setattr__

    def __setattr__(self, name: str, value: Any) -> None:
        field = config_class.__dataclass_fields__.get(name)
        if field is not None and isinstance(value, str | bool):
            try:
                value = understood(field, value)
            except ValueError as error:
                raise StrictDataclassFieldValidationError(field=name, cause=error) from error
        checked(self, name, value)
        if isinstance(value, Pattern) and "num_hidden_layers" in vars(self):
            repeat_patterns(self)

    config_class.__setattr__ = __setattr__
    return config_class


def repeat_patterns(config) -> None:
    """Every pattern as a list with one entry for each layer."""
    for field in fields(config):
        value = vars(config).get(field.name)
        if isinstance(value, Pattern):
            setattr(config, field.name, value.for_layers(config.num_hidden_layers))
