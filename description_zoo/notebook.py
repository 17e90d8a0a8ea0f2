"""A config as a notebook shows it: what differs from the defaults, by concept."""

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.config_file import own_defaults
from configuration_zoo.field_settings import settings_of, spread

from .flags import flags
from .foreign_text import printable

# Inherits the colours of the page, light or dark.
STYLE = "color:inherit;border-collapse:collapse;font-size:0.9em;text-align:left"
CELL = "padding:0.15em 1em 0.15em 0;vertical-align:top;text-align:left"
HEAD = f"{CELL};padding-top:0.7em;border-bottom:1px solid currentColor"
FAINT = "opacity:0.65"
LONGEST = 200


def as_table(config: ZooConfig) -> str:
    """An HTML table of the fields whose value is not the default, under the headings of `zoo flags`."""
    groups = settings_of(type(config))
    values = spread(config.to_diff_dict(), groups)
    every, defaults = flags(), own_defaults(type(config))
    rooms = {}
    for name, facts in every.items():
        if name in values and not _same(values[name], defaults.get(name)):
            row = _row(name, values[name], facts["default"], facts["meaning"])
            rooms.setdefault((facts["group"], facts["about"]), []).append(row)
    others = [_row(name, value, None, "") for name, value in values.items() if name not in every]
    if others:
        rooms["Others", "what every config of transformers has, and keys that are no fields"] = others
    rows = [line for (room, about), lines in rooms.items() for line in (_heading(room, about), *lines)]
    title = f"<b>{escape(type(config).__name__)}</b> <span style='{FAINT}'>what differs from the defaults</span>"
    return f"<div>{title}<table style='{STYLE}'>{''.join(rows)}</table>{drawing(config)}</div>"


def drawing(config: ZooConfig) -> str:
    """The picture of the architecture, folded; nothing for a config that was changed into one of no model."""
    from .measure import measure
    from .picture import architecture_svg

    try:
        picture = architecture_svg(measure(config))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return ""
    return f"<details><summary>drawing</summary>{picture}</details>"


def in_short(value: Any) -> str:
    """A value on one line: a list over layers as the pattern that gives it, what is long cut off."""
    text = (
        pattern(value)
        if isinstance(value, list) and len(value) > 3
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def pattern(entries: list) -> str:
    """The shortest text that a config takes for a list of one entry for each layer: `3*linear_attention, conv`."""
    period = next(n for n in range(1, len(entries) + 1) if entries == _repeated(entries[:n], len(entries)))
    return ", ".join(_runs(entries[:period]))


def _repeated(part: list, count: int) -> list:
    return [part[index % len(part)] for index in range(count)]


def _runs(entries: list) -> Iterable[str]:
    start = 0
    for index in range(1, len(entries) + 1):
        if index == len(entries) or entries[index] != entries[start]:
            word = entries[start] if isinstance(entries[start], str) else json.dumps(entries[start])
            yield word if index - start == 1 else f"{index - start}*{word}"
            start = index


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def _heading(room: str, about: str) -> str:
    said = escape(about.replace("`", ""))
    return f"<tr><th colspan='3' style='{HEAD}'>{escape(room)} <span style='{FAINT}'>{said}</span></th></tr>"


def _row(name: str, value: Any, default: Any, meaning: str) -> str:
    usual = "" if default is None else f" <span style='{FAINT}'>({escape(in_short(default))})</span>"
    said = escape(printable(in_short(value)))
    return (
        f"<tr title='{escape(meaning)}'><td style='{CELL}'><code>{escape(name)}</code></td>"
        f"<td style='{CELL}'>{said}{usual}</td><td style='{CELL};{FAINT}'>{escape(meaning)}</td></tr>"
    )
