"""zoo flags [NAME]: what can be set, and what it means."""

import json
from typing import Annotated, Any

import typer


def flags(
    name: Annotated[str | None, typer.Argument(help="A field of the config. Default: list all fields.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """List the fields of a config by concept, or describe one: values, default, meaning, source."""
    from conversion.command import quiet
    from description_zoo import flags as described

    quiet()
    every = described.flags()
    if keys := {key: facts for key, facts in every.items() if key.startswith(f"{name}.")}:
        # A dict of settings: all of its keys.
        every, name = keys, None
    if name is not None:
        facts = described.flag(name, every)
        typer.echo(json.dumps(facts) if as_json else in_words(facts))
    elif as_json:
        typer.echo(json.dumps(every))
    else:
        show(every)


def show(found: dict[str, dict]) -> None:
    """One table of 100 columns, the groups in the order in which a config is derived."""
    from .tables import print_table

    rows, group = [], None
    for name, facts in found.items():
        if facts["group"] != group:
            group = facts["group"]
            rows.append((group, "", ""))
        rows.append((f"  {name}", said(facts["default"]), values(facts, 28)))
    print_table(("flag", "default", "takes"), rows)


def in_words(facts: dict) -> str:
    """A field in a few lines."""
    from shutil import get_terminal_size
    from textwrap import fill

    lines = {
        "group": f"{facts['group']}: {facts['about']}",
        "takes": facts["takes"],
        "values": ", ".join(facts["allowed"] or ()),
        "default": said(facts["default"]),
        "needs": facts["needs"],
        "by layer": facts["by_layer"],
        "meaning": facts["meaning"],
        "source": facts["source"],
        "file": facts["file"],
    }
    width = min(get_terminal_size().columns, 100)
    after = {"width": width, "subsequent_indent": " " * 12, "break_on_hyphens": False}
    return "\n".join([facts["name"], *(fill(f"  {word:<10}{text}", **after) for word, text in lines.items() if text)])


def said(default: Any) -> str:
    """A default as it stands in config.json; what is not there is derived, or off."""
    return "-" if default is None else json.dumps(default)


def values(facts: dict, width: int) -> str:
    """What a field takes, in one column."""
    text = " | ".join(facts["allowed"] or [facts["takes"]])
    return text if len(text) <= width else f"{text[: width - 3].rpartition(' ')[0]} ..."
