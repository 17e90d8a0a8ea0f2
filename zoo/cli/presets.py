"""zoo presets [NAME]: published architectures to look at or to start from."""

import json
from typing import Annotated

import typer


def presets(
    name: Annotated[str | None, typer.Argument(help="Print the config.json of this preset. Default: list all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list as one JSON object, name -> config.")] = False,
) -> None:
    """List the architectures that `zoo inspect NAME` and `ZooConfig.preset(NAME)` know by name."""
    from configuration_zoo.presets import preset
    from configuration_zoo.presets import presets as every

    if name is not None:
        typer.echo(json.dumps({"model_type": "zoo"} | preset(name), indent=2))
    elif as_json:
        typer.echo(json.dumps({name: {"model_type": "zoo"} | preset(name) for name in every()}))
    else:
        from .tables import print_table, short

        columns = ("num_hidden_layers", "hidden_size", "num_attention_heads")
        rows = []
        for name, entry in every().items():
            published = short(entry.parameters) if entry.parameters else ""
            rows.append((name, *(str(entry.fields.get(column, "")) for column in columns), published, entry.source))
        print_table(("preset", "layers", "width", "heads", "parameters", "source"), rows, numeric=(1, 2, 3, 4))
