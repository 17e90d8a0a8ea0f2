"""What the code of a model's folder can rely on: its configs layer by layer, and what may be asked of them.

Never shipped. As for configurations (export_config_worlds.py), but everything that transformers or a run may change is
open, and so is the number of a layer wherever it does more than pick an entry of a list.
"""

import types
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig

from .export_config_fields import Plan
from .export_config_worlds import Open, World, _open, selections


class Index(int):
    """The number of a layer, or of layers: good for an entry of a list, or to count them."""

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = _open
    __rmul__ = __mod__ = __floordiv__ = __truediv__ = __pow__ = __bool__ = __neg__ = _open
    __hash__ = int.__hash__


class Values(dict):
    """Fields by name, and which of them have been read."""

    read: set[str]

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


class ModelWorld(World):
    """A world of which nothing is known but fields and what follows from them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise Open from None


@cache
def model_world_class(config_class: type) -> type:
    body = {"__dataclass_fields__": config_class.__dataclass_fields__}
    return types.new_class("World", (ModelWorld,), {}, lambda space: space.update(body))


def layer_worlds(config: ZooConfig, plan: Plan) -> tuple[list[tuple[World, Index]], set[str]]:
    """(config, layer) for each kind of layer among each selection of kinds, and a set of the fields that are read."""
    made, found, read = model_world_class(type(config)), [], set()
    theirs = dict.fromkeys(PreTrainedConfig.__dataclass_fields__, Open)
    rows = list(zip(*plan.lists.values(), strict=True))
    for chosen in selections(rows)[1:]:
        own = {name: [entries[index] for index in chosen] for name, entries in plan.lists.items()}
        values = Values({**theirs, **plan.statuses, "num_hidden_layers": Index(len(chosen)), **own})
        values.read = read
        world = made(type(config), values, plan.groups)
        found += [(world, Index(place)) for place in range(len(chosen))]
    return found, read
