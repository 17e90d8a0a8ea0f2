"""The constants of an exported configuration that are made for its model. Never shipped."""

import re
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import Field
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.config_file import ALWAYS
from configuration_zoo.configuration_zoo import PLATFORM_KEYS
from configuration_zoo.first_layers import build_without_unread, per_layer_names, unread_field

from .export_config_fields import Plan, comment_lines, quoted, table_lines, without
from .export_config_worlds import Open


class Tables:
    """Names of fields, by what becomes of them."""

    def __init__(self, config: ZooConfig, plan: Plan, every: dict[str, Field]):
        self.config, self.plan, self.every = config, plan, every

    def lines(self, mixed: bool) -> dict[str, list[str]]:
        """The constants that are made here, by name."""
        written = [*ALWAYS, *(name for name in self.plan.written if name not in ALWAYS)]
        return {
            "PLATFORM_KEYS": tuple_lines("PLATFORM_KEYS", PLATFORM_KEYS),
            "WRITTEN": tuple_lines("WRITTEN", [name for name in written if name in self.plan.carried]),
            "PRESENT": tuple_lines("PRESENT", self.present()),
            "SAID": self.said_lines(),
            **self.left_lines(),
            **({"READ_BY": self.read_by_lines()} if mixed else {}),
        }

    def present(self) -> list[str]:
        """The numbers of a concept that nothing derives: without them it is another model."""
        view = self.config.outside_layers()
        found = []
        for name in [name for name in self.plan.written if self.is_present(name)]:
            derived = copy(view)
            vars(derived).update(without(derived, name))
            with suppress(Exception):
                derived._resolve()
            if getattr(derived, name) is None:
                found.append(name)
        return found

    def read_by_lines(self) -> list[str]:
        """`read_by` by place."""
        places = {}
        for name, place in self.read_by().items():
            places.setdefault(place, []).append(name)
        if not places:
            return ["READ_BY = {}"]
        rows = [f"**dict.fromkeys({quoted(tuple(names))}, {quoted(place)})," for place, names in places.items()]
        indents = {"initial_indent": "    ", "subsequent_indent": "        "}
        lines = [line for row in rows for line in textwrap.wrap(row, 112, **indents, break_on_hyphens=False)]
        return ["# What only some kinds of layers read.", "READ_BY = {", *lines, "}  # fmt: skip"]

    def said_lines(self) -> list[str]:
        if not self.plan.said:
            return ["SAID = {}"]
        lines = ["# What this model is, of all that zoo knows: config.json says so, code for other values is not here."]
        lines += ["SAID = {"]
        for name, value in self.plan.said.items():
            lines += [*comment_lines(self.every[name], 4), f"    {quoted(name)}: {quoted(value)},"]
        return [*lines, "}"]

    def read_by(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Fields that only some kinds of layers read: name -> the list and the words in it that say which."""
        rows = list(zip(*self.plan.lists.values(), strict=True))
        kinds = list(dict.fromkeys(rows))
        values = self.config.to_dict()
        without = [without_unread(self.config, values, [row == kind for row in rows]) for kind in kinds]
        found = {}
        for name in [*self.plan.said, *self.plan.written]:
            where = [index for index, unread in enumerate(without) if name not in unread]
            if len(where) < len(kinds):
                found[name] = distinguished([kinds[index] for index in where], kinds, [*self.plan.lists])
        return {name: place for name, place in found.items() if self.is_present(name) or name in self.plan.said}

    def left_lines(self) -> dict[str, list[str]]:
        """What is left out: names at None, and dicts all of whose keys are, as words, the others with their values."""
        absent = [name for name, value in self.plan.left.items() if value is None and "." not in name]
        others = {name: value for name, value in self.plan.left.items() if name not in {*absent, *self.plan.said}}
        groups = {name: keys for name, keys in others.items() if isinstance(keys, dict) and is_absent(keys)}
        others = {name: value for name, value in others.items() if name not in groups}
        keys = "{row.split()[0]: dict.fromkeys(row.split()[1:]) for row in ABSENT_KEYS} | " if groups else ""
        rows = wrapped("; ".join(f"{name} {' '.join(keys)}" for name, keys in groups.items()))
        return {
            "ABSENT": ['ABSENT = """', *wrapped(" ".join(absent)), '""".split()'],
            **({"ABSENT_KEYS": ['ABSENT_KEYS = """', *rows, '""".split(";")']} if groups else {}),
            "LEFT_OUT": table_lines(others, 0, f"LEFT_OUT = dict.fromkeys(ABSENT) | {keys}SAID | ", ""),
        }

    def is_open(self, name: str) -> bool:
        return name in self.plan.carried

    def is_present(self, name: str) -> bool:
        status = self.plan.statuses.get(name)
        return status is not None and status is not Open and self.every[name].default is None


def is_absent(keys: dict[str, Any]) -> bool:
    return all(value is None for value in keys.values())


def wrapped(text: str) -> list[str]:
    return [f"    {row}" for row in textwrap.wrap(text, 112, break_on_hyphens=False)]


def tuple_lines(name: str, values: Iterable[str]) -> list[str]:
    entries = [quoted(value) for value in values]
    line = f"{name} = ({', '.join(entries)}{',' if len(entries) == 1 else ''})"
    if len(line) <= 120:
        return [line]
    rows, row = [], ""
    for entry in entries:
        if len(row) + len(entry) + 8 > 120:
            rows.append(row.rstrip())
            row = ""
        row += f"{entry}, "
    return [f"{name} = (", *(f"    {row.rstrip()}" for row in [*rows, row]), ")  # fmt: skip"]


def without_unread(config: ZooConfig, values: dict[str, Any], kept: list[bool]) -> set[str]:
    """The fields that no layer of a selection reads."""
    names = per_layer_names(type(config))
    cut = {
        name: [one for one, stays in zip(value, kept, strict=True) if stays]
        if name in names and isinstance(value, list)
        else value
        for name, value in values.items()
    }
    unread = set()

    def build(some):
        try:
            return type(config)(**deepcopy(some))
        except Exception as error:
            if (name := unread_field(error)) is not None:
                unread.add(name)
            raise

    with suppress(Exception):
        build_without_unread(build, cut | {"num_hidden_layers": sum(kept)}, set())
    return unread


def distinguished(some: list[tuple], kinds: list[tuple], names: list[str]) -> tuple[str, tuple[str, ...]]:
    """The list and the words in it that some kinds of layers have and no other one has; their layer types without such
    a list."""
    found = []
    for index, name in enumerate(names):
        words = tuple(dict.fromkeys(kind[index] for kind in some))
        if None not in words and not {*words} & {kind[index] for kind in kinds if kind not in some}:
            found.append((name, words))
    index = names.index("layer_types")
    return min(found, key=lambda place: len(place[1]), default=("layer_types", (*{kind[index]: 0 for kind in some},)))


def constant_name(class_name: str) -> str:
    """`ExpertFields` as EXPERT_FIELDS."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name).upper()
