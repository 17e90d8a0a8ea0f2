"""zoo advise MODEL: a config beside what published models agree on."""

import json
from typing import Annotated, Any

import typer

from .inspect import MODEL_HELP


def advise(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    every: Annotated[bool, typer.Option("--all", help="What is inside its range too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All notes as JSON, with every published model.")] = False,
) -> None:
    """Hold sizes and concepts of a config beside those of published models. Notes, never errors."""
    from conversion.command import quiet
    from description_zoo.advice import advice

    from ..inspection import config_of

    quiet()
    notes = advice(config_of(model))
    typer.echo(json.dumps(notes)) if as_json else show(notes, every)


def show(notes: list[dict[str, Any]], every: bool) -> None:
    """A few lines for each note, those outside of their range first."""
    outside, inside = ([note for note in notes if note["inside"] is side] for side in (False, True))
    for note in [*outside, *(inside if every else [])]:
        typer.echo(in_lines(note) + "\n")
    if inside and not every:
        from description_zoo.advice import in_words

        said = ", ".join(f"{note['topic']} {in_words(note['value'])}" for note in inside)
        typer.echo(filled("in range", said))
    typer.echo(f"{len(inside)} of {len(notes)} as in published models.")


def in_lines(note: dict[str, Any]) -> str:
    """Topic and value, then what it should be, who is where, why, and what to set."""
    from description_zoo.advice import in_words, nearest_models

    lines = [f"{note['topic']}: {in_words(note['value'])}"]
    parts = {
        "range": note["range"],
        "inside": ", ".join(nearest_models(note, "inside")),
        "outside": ", ".join(nearest_models(note, "outside")),
        "why": f"{note['says']} {note['source']}.",
        "set": note["set"],
    }
    return "\n".join([*lines, *(filled(name, text) for name, text in parts.items() if text)])


def filled(name: str, text: str) -> str:
    """A name and its text, within 100 columns."""
    from textwrap import fill

    start = f"  {name:<10}"
    return fill(text, 100, initial_indent=start, subsequent_indent=" " * 12, break_on_hyphens=False)
