"""What a field of the config may hold, said where it is declared and checked whenever it is set.

`size(32, meaning=..., source=...)`, `choice(("a", "b"), ...)` ... stand in place of a dataclass default. The kind
they describe is in the field's metadata under "kind", where the strict dataclass's own check of its type is followed by
this one; beside it stand what the field means and which paper or published implementation it is from. Those are what
`help(ZooConfig)` and `zoo flags` print.
"""

import dataclasses
import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from .other_words import answer

# No matrix of a model is wider, and no text longer: what is more is a slip that would ask for all memory there is.
WIDEST = 2**24
LONGEST = 2**31 - 1
# Nor has any more layers; the deepest that was trained has some hundreds.
DEEPEST = 4096


def nearest(name: str, known: Iterable[str]) -> str:
    """What another word is called here (other_words.py), else `" Did you mean 'x'?"` for the closest name, else ""."""
    known = list(known)
    if says := answer(name, known):
        return f" {says[0].upper()}{says[1:]}."
    matches = get_close_matches(name, known, n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


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
class Flag:
    """True or False, which the type has said."""

    def check(self, name: str, value: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of `count` entries of one kind, or of one for each layer; None stands for an entry that is open.

    `period` says what a number n in place of a list over layers means: n - 1 of its first entry, one of its last.
    """

    entry: Number | Choice
    count: int | None = None
    per_layer: bool = False
    period: tuple = ()

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
        if isinstance(value, dict):
            for key, entry in value.items():
                self.check(f"{name}[{key!r}]", entry)
        if isinstance(value, list):
            for index, entry in enumerate(value):
                self.check(f"{name}[{index}]", entry)


@dataclasses.dataclass(frozen=True)
class Spreads:
    """A dict of standard deviations by name."""

    def check(self, name: str, value: Any) -> None:
        for key, entry in value.items():
            is_number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
            if not is_number or not math.isfinite(entry) or entry < 0:
                raise ValueError(f"{name}[{key!r}]={entry!r} must be a finite number that is not negative.")


@dataclasses.dataclass(frozen=True)
class Record:
    """A dict that is kept and not read."""

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


Kind = Number | Choice | Flag | Items | Table | Spreads | Record | Settings


def check_type(kind: Kind, name: str, value: Any) -> None:
    """Raises ValueError for an entry of another type than its kind: what the annotation of a field says of a field."""
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
        Spreads: (dict, "a dict of numbers"),
    }[type(kind)]
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        whole = "a whole number" if types is int else words
        names = f", one of {sorted(kind.names)}" if isinstance(kind, Choice) else ""
        raise ValueError(f"{name}={value!r} must be {whole}{names}.")


def setting(
    kind: Kind, default: Any, *, meaning: str, source: str, needs: str | None = None, neutral: tuple = ()
) -> Any:
    """A dataclass field whose values are None or of `kind`; a bad one is refused with the field's name.

    `meaning` says in sentences what the field does and what None stands for; `source` is a paper, a published
    implementation, "transformers" or "own to zoo". `needs` is what a layer must have for the field to be read
    (field_needs.py), `neutral` what the field may say besides its default where there is no such layer.
    """

    def validate(value: Any) -> None:
        if value is not None:
            kind.check(made.name, value)

    metadata = {"kind": kind, "meaning": meaning, "source": source, "needs": needs, "neutral": neutral}
    metadata["validator"] = validate
    made = dataclasses.field(default=default, metadata=metadata)
    return made


def size(default: int | None = None, **says: Any) -> Any:
    """How many rows or columns a matrix has, how many heads, layers or experts there are."""
    return setting(Number(whole=True, above=0, most=WIDEST), default, **says)


def depth(default: int | None = None, **says: Any) -> Any:
    """How many layers."""
    return setting(Number(whole=True, above=0, most=DEEPEST), default, **says)


def length(default: int | None = None, **says: Any) -> Any:
    """How many tokens."""
    return setting(Number(whole=True, above=0, most=LONGEST), default, **says)


def count(default: int | None = None, most: int = WIDEST, **says: Any) -> Any:
    """How many, none included."""
    return setting(Number(whole=True, least=0, most=most), default, **says)


def positive(default: float | None = None, **says: Any) -> Any:
    return setting(Number(above=0), default, **says)


def non_negative(default: float | None = None, **says: Any) -> Any:
    return setting(Number(least=0), default, **says)


def factor(default: float | None = None, **says: Any) -> Any:
    """A number that multiplies, of either sign."""
    return setting(Number(nonzero=True), default, **says)


def number(
    default: float | None = None, *, meaning: str, source: str, needs: str | None = None, **bounds: float
) -> Any:
    """A number within bounds, which are those of `Number`."""
    return setting(Number(**bounds), default, meaning=meaning, source=source, needs=needs)


def probability(default: float | None = 0.0, **says: Any) -> Any:
    """A rate of dropout or noise."""
    return setting(Number(least=0, below=1), default, **says)


def choice(names: Iterable[str], default: str | None = None, **says: Any) -> Any:
    return setting(Choice(tuple(names)), default, **says)


def flag(default: bool | None = False, **says: Any) -> Any:
    return setting(Flag(), default, **says)


def items(entry: Number | Choice, count: int, **says: Any) -> Any:
    return setting(Items(entry, count=count), None, **says)


def spreads(**says: Any) -> Any:
    return setting(Spreads(), None, **says)


def settings(meaning: str, /, **keys: dataclasses.Field) -> Any:
    """A dict of settings: `settings("What they are about.", norm=choice(...), ...)`; every key has its own source."""
    return setting(Settings(keys), None, meaning=meaning, source="see its keys")


def per_layer(entry: Number | Choice, default: str | None = None, period: tuple = (), **says: Any) -> Any:
    """One entry for each layer; where the field's type has it, one for all of them."""
    return setting(Items(entry, per_layer=True, period=period), default, **says)
