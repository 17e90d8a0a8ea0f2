"""The configs that a folder's code serves, as far as they are fixed: what the exporter runs the package's checks on.

Never shipped. A world is a config in which what a folder leaves out has its one value, and what may change raises
`Open` when it is read. The same model is there with each selection of its layers, so that what one of them decides
otherwise stays open.
"""

import types
from collections.abc import Iterable
from functools import cache
from itertools import combinations
from typing import Any

from configuration_zoo.field_settings import described

MOST_KINDS = 4


class Open(Exception):
    """What was read may be another value."""


class Effect(Exception):
    """What was run changes something."""


def _open(*arguments: Any) -> Any:
    raise Open


class Present:
    """A number that the model has, whichever it is."""

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: Any) -> bool:
        return False if other is None or other is False else _open()

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def __str__(self) -> str:
        return "?"

    __repr__ = __str__
    __hash__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _open
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _open
    __neg__ = __iter__ = __len__ = __getitem__ = __contains__ = __index__ = __int__ = __float__ = __divmod__ = _open

    def __format__(self, spec: str) -> str:
        return "?"


class Settings(dict):
    """A dict of settings some of whose keys are open."""

    def __init__(self, world: "World", group: str, keys: Iterable[str]):
        super().__init__(dict.fromkeys(keys))
        self.world, self.group = world, group

    def __getitem__(self, key: str) -> Any:
        return getattr(self.world, f"{self.group}.{key}")

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    items = values = __eq__ = _open
    __hash__ = None


class World:
    """One config. `values` are those of fields by name, with `Open` (the class) for one that may be another."""

    def __init__(self, config_class: type, values: dict[str, Any], groups: dict[str, tuple]):
        self.__dict__["_state"] = (config_class, values, groups)
        # What methods and properties are known to answer.
        self.__dict__["_answers"] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # What `copy` asks of an object that it is about to fill.
            raise AttributeError(name)
        config_class, values, groups = self.__dict__["_state"]
        if name in values:
            return _open() if values[name] is Open else values[name]
        if name in self.__dict__["_answers"]:
            return self.__dict__["_answers"][name]
        if name in groups:
            return Settings(self, name, groups[name])
        if name == "per_layer_config":
            return [self] * values["num_hidden_layers"]
        if name in ("is_heterogeneous", "per_layer_attributes"):
            return None
        for base in config_class.__mro__:
            if name in vars(base):
                found = vars(base)[name]
                return found.__get__(self, type(self)) if hasattr(found, "__get__") else found
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__["_state"][1] or getattr(self, name) != value:
            raise Effect(name)


@cache
def world_class(config_class: type) -> type:
    """A class of worlds that answers for the fields of a config class."""
    return types.new_class(
        "World", (World,), {}, lambda body: body.update(__dataclass_fields__=config_class.__dataclass_fields__)
    )


def selections(rows: list[tuple]) -> list[list[int]]:
    """Indices of layers: the model's own, and each selection of its kinds, in the model's order."""
    kinds = list(dict.fromkeys(rows))
    if len(kinds) > MOST_KINDS:
        chosen = [(kind,) for kind in kinds] + list(combinations(kinds, 2))
    else:
        chosen = [kept for count in range(1, len(kinds) + 1) for kept in combinations(kinds, count)]
    found = [list(range(len(rows)))]
    for kept in chosen:
        first = [rows.index(kind) for kind in kept]
        found += [sorted(first), sorted(first * 2)]
    return found


def worlds(
    config: Any, statuses: dict[str, Any], lists: dict[str, list], groups: dict[str, tuple], deriving: bool
) -> list[World]:
    """The worlds of a config.

    `statuses`: field -> its fixed value, or `Open`, or `Present()`. `lists`: field -> one entry for each layer. While
    values are derived (`deriving`), what is left out stands at None.
    """
    made = world_class(type(config))
    names, open_if_none = list(lists), {}
    if deriving:
        open_if_none = {
            name: Open
            for name, value in statuses.items()
            if isinstance(value, Present) and _default(config, name) is None
        }
    found = []
    rows = list(zip(*lists.values(), strict=True))
    for chosen in selections(rows):
        own = {name: [lists[name][index] for index in chosen] for name in names}
        values = {**statuses, **open_if_none, "num_hidden_layers": len(chosen)}
        found.append(made(type(config), values | own, groups))
        if deriving:
            unsaid = [name for name in lists if _default(config, name) is None]
            for left in {(name,) for name in unsaid} | {tuple(unsaid)}:
                found.append(made(type(config), values | own | dict.fromkeys(left), groups))
    return found


def _default(config, name: str) -> Any:
    return described(type(config))[name].default
