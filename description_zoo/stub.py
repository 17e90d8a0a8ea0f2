"""What an editor shows of ZooConfig: `configuration_zoo.pyi`, written from what the fields say of themselves.

`python -m description_zoo.stub` writes the file; nothing imports it, and no model folder has it. An editor takes it in
place of the source: every argument with its type, the names it takes and what it means.
"""

import ast
import inspect
import json
import textwrap
from dataclasses import Field
from pathlib import Path
from typing import Any

import configuration_zoo
from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Flag, Items, Kind, Number, Settings
from configuration_zoo.field_settings import settings_of

from .flags import flags

PATH = Path(configuration_zoo.__file__).with_name("configuration_zoo.pyi")
HEAD = '''# Written by `python -m description_zoo.stub`; do not edit.
"""ZooConfig: what a model is, one field per concept."""

import os
from typing import Any, Literal, TypedDict

from transformers import PreTrainedConfig
'''


def stub() -> str:
    """The text of the file."""
    every, kinds = flags(), settings_of(ZooConfig)
    # Dicts of settings once, in place of their keys.
    fields = {name: ZooConfig.__dataclass_fields__[name] for name in dict.fromkeys(map(group_of, every))}
    body = [docstring(inspect.cleandoc(class_text()))]
    for name, field in fields.items():
        body += [f"{name}: {stored(field)}", docstring(about(every[name]) if name in every else meaning_of(field))]
    body += [constructor(fields, every), *public_methods()]
    parts = [HEAD, *(keys(name, kind.keys, every) for name, kind in kinds.items())]
    return "\n".join([*parts, "class ZooConfig(PreTrainedConfig):", indented("\n".join(body))]) + "\n"


def group_of(name: str) -> str:
    return name.partition(".")[0]


def class_text() -> str:
    """The docstring as it stands in the source."""
    return vars(ZooConfig)["__doc__"].text


def meaning_of(field: Field) -> str:
    return field.metadata["meaning"]


def about(facts: dict[str, Any]) -> str:
    """What a field means, needs and is from, in one paragraph."""
    needs = f" Needs {facts['needs']}." if facts["needs"] else ""
    return f"{facts['meaning']}{needs} Source: {facts['source']}."


def entry_type(kind: Kind) -> str | None:
    """The type of one value, of a kind that says more than the annotation of the field."""
    return f"Literal[{', '.join(json.dumps(name) for name in kind.names)}]" if isinstance(kind, Choice) else None


def stored(field: Field) -> str:
    """The type of what a config has."""
    kind, said = field.metadata["kind"], inspect.formatannotation(field.type)
    if isinstance(kind, Items) and isinstance(kind.entry, Choice):
        return said.replace("str", entry_type(kind.entry))
    if isinstance(kind, Settings):
        return "dict[str, Any]"
    return said.replace("str", entry_type(kind) or "str").replace("dict ", "dict[str, Any] ")


def taken(name: str, field: Field) -> str:
    """The type of what may be given: a list over layers also as a pattern or a period; a dict of settings in part."""
    kind = field.metadata["kind"]
    if isinstance(kind, Settings):
        return f"{class_name(name)} | None"
    written = ["str"] if getattr(kind, "per_layer", False) else []
    written += ["int"] if getattr(kind, "period", ()) else []
    return " | ".join([stored(field), *written])


def class_name(name: str) -> str:
    """What the class of a dict of settings is called: `ResidualFactors` of `residual_factors`."""
    return "".join(word.capitalize() for word in name.split("_"))


def keys(name: str, fields: dict[str, Field], every: dict[str, dict[str, Any]]) -> str:
    """The class of a dict of settings."""
    lines = [f"class {class_name(name)}(TypedDict, total=False):"]
    for key, field in fields.items():
        kind = field.metadata["kind"]
        bare = {Flag: "bool", Number: "int" if getattr(kind, "whole", False) else "float"}
        lines += [f"    {key}: {entry_type(kind) or bare.get(type(kind), 'Any')} | None"]
        lines += [indented(docstring(about(every[f"{name}.{key}"])))]
    return "\n".join(lines) + "\n"


def constructor(fields: dict[str, Field], every: dict[str, dict[str, Any]]) -> str:
    """`__init__`, with one line for each argument: where editors look for what the one at hand means."""
    lines = ["def __init__(", "    self,", "    *,"]
    lines += [f"    {name}: {taken(name, field)} = {field.default!r}," for name, field in fields.items()]
    said = [f"    {name}: {meaning_of(field)}" for name, field in fields.items()]
    return "\n".join([*lines, "    **kwargs: Any,", ") -> None:", indented(docstring("\n".join(["Args:", *said])))])


def public_methods() -> list[str]:
    """Signature and docstring of every method and property that zoo's own classes have for others."""
    found = {}
    for group in [group for group in ZooConfig.__mro__ if group.__module__.startswith("configuration_zoo.")]:
        tree = ast.parse(Path(inspect.getsourcefile(group)).read_text())
        [node] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == group.__name__]
        for method in [node for node in node.body if isinstance(node, ast.FunctionDef)]:
            if not method.name.startswith(("_", "resolve_", "validate_")):
                found.setdefault((method.name, len(method.decorator_list), len(method.args.args)), signature(method))
    return list(found.values())


def signature(method: ast.FunctionDef) -> str:
    """A method without what it does."""
    said = ast.get_docstring(method)
    method.body = [ast.Expr(ast.Constant(...))]
    method.decorator_list = [one for one in method.decorator_list if ast.unparse(one) != "for_each_layer"]
    text = ast.unparse(method)
    return text.replace("\n    ...", "\n" + indented(docstring(said))) if said else text


def docstring(text: str) -> str:
    """A docstring of lines no longer than the page, but for those of arguments, which editors read one by one."""
    lines = (
        [text]
        if text.startswith("Args:")
        else [textwrap.fill(part, 110, break_on_hyphens=False) for part in text.split("\n\n")]
    )
    quoted = "\n\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{quoted}{" " if quoted.endswith(chr(34)) else ""}"""'


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


if __name__ == "__main__":
    PATH.write_text(stub())
