"""Which families use a concept: what their converters set, read off the default model of each."""

from typing import Any

from conversion.engine.catalog import catalog

from .concept import Concept
from .concepts import flags_of

MOST_VALUES = 12


def uses_table(concept: Concept, every: dict[str, dict], families: dict[str, dict[str, Any]]) -> str:
    """A row for each value of each flag that some family sets; of a key in a dict, which is derived where it is not
    said, without the value that most have."""
    rows = []
    for flag in flags_of(concept, every):
        users = {}
        for name, concepts in families.items():
            for value in values_of(concepts.get(flag)):
                users.setdefault(value, []).append(name)
        if "." in flag and users:
            del users[max(users, key=lambda value: len(users[value]))]
        if len(users) > MOST_VALUES:
            users = {"a number of its own": sorted({name for names in users.values() for name in names})}
        rows += [f"| `{flag}` | {value} | {', '.join(names)} |" for value, names in sorted(users.items())]
    if not rows:
        return "No converter sets it by default."
    return "\n".join(["| flag | value | families |", "|---|---|---|", *rows])


def values_of(value: Any) -> list[str]:
    """What a family sets, in words; the entries of a list one by one."""
    if value is None or isinstance(value, dict):
        return [] if value is None else ["a table"]
    entries = value if isinstance(value, list) else [value]
    return [
        f"`{entry}`" if isinstance(entry, str) else f"{entry:g}" if isinstance(entry, float) else str(entry)
        for entry in dict.fromkeys(entries)
        if entry is not None
    ]


def concepts_of_families() -> dict[str, dict[str, Any]]:
    """{family: {flag: value}} of what the default model of each sets otherwise than ZooConfig."""
    return {name: facts["concepts"] for name, facts in catalog()["families"].items()}
