"""Every field of the config in words: what it means, takes and needs, its default, and where it comes from."""

import inspect
import re
import textwrap
from dataclasses import MISSING, Field
from typing import Any, get_args

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Flag, Items, Kind, Number, Record, Spreads, Table, nearest
from configuration_zoo.field_needs import GROUP_NEEDS, NEEDS
from configuration_zoo.field_settings import described
from configuration_zoo.fields_linear import LINEAR_FIELDS, LINEAR_MECHANISMS
from configuration_zoo.fields_per_layer import PER_LAYER_FIELDS


def flags() -> dict[str, dict[str, Any]]:
    """{name: facts} of every field, in the order of the groups: see `facts`."""
    fields, found = described(ZooConfig), {}
    for group in ZooConfig.__mro__:
        if group.__module__.startswith("configuration_zoo.fields_"):
            own = inspect.get_annotations(group)
            found |= {name: facts(name, field, group) for name, field in fields.items() if name.split(".")[0] in own}
    return found


def flag(name: str, every: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The facts of one field among `every`, by its name or one that transformers gives it; raises ValueError for any
    other."""
    name = ZooConfig.attribute_map.get(name, name)
    if name not in every:
        raise ValueError(f"There is no flag {name!r}.{nearest(name, every)}")
    return every[name]


def facts(name: str, field: Field, group: type) -> dict[str, Any]:
    """What can be said of a field: JSON values alone."""
    kind, need = field.metadata.get("kind"), field.metadata.get("needs")
    return {
        "name": name,
        "group": heading(group),
        "about": inspect.getdoc(group).split("\n")[0],
        "default": None if field.default is MISSING else field.default,
        "takes": f"{takes(kind.entry)}, or {takes(kind)}" if _one_or_list(field) else takes(kind),
        "allowed": list(getattr(getattr(kind, "entry", kind), "names", ())) or None,
        "needs": needed(name, need),
        "by_layer": by_layer(name, kind),
        "meaning": field.metadata["meaning"],
        "source": field.metadata["source"],
        "file": f"configuration_zoo/{group.__module__.rpartition('.')[2]}.py",
    }


def needed(name: str, need: str | None) -> str | None:
    """What a field only means something with: the words of its refusal."""
    if name in LINEAR_FIELDS:
        return f"a linear_attention_type of {[one for one, fields in LINEAR_MECHANISMS.items() if name in fields]}"
    return NEEDS[need][1] if need in NEEDS else GROUP_NEEDS.get(need)


def heading(group: type) -> str:
    """KeyValueSharingFields -> "Key value sharing"."""
    words = re.findall("[A-Z][a-z]*", group.__name__.removesuffix("Fields"))
    plain = {"Mlp": "MLP", "Expert": "Experts", "Linear": "Recurrences", "Norm": "Norms and residuals"}
    return plain.get(words[0], " ".join(words).capitalize())


def _one_or_list(field: Field) -> bool:
    """Whether a field takes what an entry of its list is."""
    return isinstance(field.metadata.get("kind"), Items) and bool({str, int} & {*get_args(field.type)})


def takes(kind: Kind) -> str:
    """What values a kind is."""
    match kind:
        case Number():
            return _number(kind)
        case Choice():
            return "a name"
        case Flag():
            return "true or false"
        case Items(per_layer=True):
            return f"a list with {takes(kind.entry)} for each layer" + (", or a period" if kind.period else "")
        case Items(count=None):
            return f"a list, each entry {takes(kind.entry)}"
        case Items():
            return f"a list of {kind.count}, each {takes(kind.entry)}"
        case Record():
            return "a table that is kept and not read"
        case Table():
            return "a table"
        case Spreads():
            return "a table of numbers, none negative"
    return "a value"


def _number(kind: Number) -> str:
    bounds = {"above": kind.above, "at least": kind.least, "below": kind.below, "at most": kind.most}
    # Upper limits on sizes only guard against typing errors; they are not listed.
    said = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None and bound < 2**12]
    said += ["not 0"] if kind.nonzero else []
    return " ".join(["a whole number" if kind.whole else "a number", " and ".join(said)]).strip()


def by_layer(name: str, kind: Kind) -> str:
    """Whether a field may differ from layer to layer, and how that is said."""
    if getattr(kind, "per_layer", False):
        return "a list with one entry for each layer"
    readers = [reader for reader, names in PER_LAYER_FIELDS.items() if name in names]
    return f"per_layer_config, for {readers[0]}" if readers else "no: one for the model"


def help_text(about: str) -> str:
    """What `help(ZooConfig)` and a notebook's `ZooConfig?` show: the text of the class, then every field by concept."""
    lines, group = [inspect.cleandoc(about), "", "Fields, by concept (`zoo flags NAME` says all of one):"], None
    for facts in flags().values():
        if facts["group"] != group:
            group = facts["group"]
            lines += ["", f"{group}: {facts['about']}", ""]
        lines.append(f"{facts['name']}: {facts['takes']}; default {facts['default']!r}")
        parts = [facts["meaning"], f"Source: {facts['source']}."]
        parts += [f"One of {', '.join(facts['allowed'])}."] if facts["allowed"] else []
        parts += [f"Needs {facts['needs']}."] if facts["needs"] else []
        indented = {"initial_indent": " " * 4, "subsequent_indent": " " * 4, "break_on_hyphens": False}
        lines += textwrap.wrap(" ".join(parts), 100, **indented)
    return "\n".join(lines) + "\n"
