"""zoo presets [NAME]: published configs to look at or to start from; one file each in preset_configs/."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError

FOLDER = Path(__file__).parent / "preset_configs"


def names() -> list[str]:
    """The presets, in alphabetical order."""
    return sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json"))


def read(name: str) -> dict:
    """The config.json of a preset; raises UserError with the nearest name."""
    if name not in names():
        from difflib import get_close_matches

        close = get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else f" There are: {', '.join(names())}."
        raise UserError(f"there is no preset {name}.{hint}")
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one's config.json. Without it: list them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list as one JSON object, name -> config.")] = False,
) -> None:
    """List the configs that `zoo inspect NAME` knows by name."""
    if name is not None:
        typer.echo(json.dumps(read(name), indent=2))
        return
    found = {name: read(name) for name in names()}
    if as_json:
        typer.echo(json.dumps(found))
        return
    from .tables import print_table

    columns = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    rows = [(name, *(str(config.get(column, "")) for column in columns)) for name, config in found.items()]
    print_table(("preset", "model_type", "layers", "width", "heads", "vocabulary"), rows)
