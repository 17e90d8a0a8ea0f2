"""zoo diff A B: what two models do not have in common."""

import json
from typing import Annotated, Any

import typer

from .inspect import MODEL_HELP


def diff(
    one: Annotated[str, typer.Argument(help=MODEL_HELP)],
    other: Annotated[str, typer.Argument(help="The same, of another model.")],
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a sequence. Default: all that both can have.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Show in which sizes, costs, layers and flags two models differ. No weight is allocated."""
    from conversion.command import quiet

    from ..inspection import diff as compared

    quiet()
    found = compared(one, other, context=context)
    typer.echo(json.dumps(found)) if as_json else show(found, one, other)


def show(found: dict[str, Any], one: str, other: str) -> None:
    """One table: totals, each kind of layer, flags."""
    from .tables import print_table

    sections = [("whole model", found["totals"], measured)]
    for row in found["layers"]:
        here, there = (where or "none" for where in row["layers"])
        sections.append((f"layers {here} | {there}", {name: row[name] for name in row if name != "layers"}, measured))
    sections.append(("flags", found["flags"], set_to))
    rows = []
    for heading, pairs, said in sections:
        lines = [(f"  {name}", *(said(name, value) for value in pair)) for name, pair in pairs.items()]
        rows += [(heading, "", ""), *lines] if lines or heading.startswith("layers") else []
    if not rows:
        typer.echo(f"{one} and {other} differ in nothing.")
        return
    print_table(("", one, other), rows)
    typer.echo(f"at {found['context']} tokens of context")


def measured(name: str, value: Any) -> str:
    """Words and numbers of a report in one column."""
    from .tables import short, short_bytes

    if value in (None, [], {}, ""):
        return "-"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str) or name in ("vocab_size", "hidden_size"):
        return str(value)
    return short_bytes(value) if "bytes" in name else short(value)


def set_to(name: str, value: Any) -> str:
    """The value of a flag in one column."""
    from description_zoo.notebook import in_short

    if value is None:
        return "-"
    return value if isinstance(value, str) else in_short(value)
