"""zoo export FOLDER [--all] [--check]: the code in a model folder, written again or compared."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError

FOLDER_HELP = (
    "A zoo folder: one with a config.json of model_type zoo. With --check also a Hub id owner/name[@revision]."
)


def export(
    model: Annotated[str, typer.Argument(metavar="folder", help=FOLDER_HELP)],
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit code 1 if the code is not what this zoo writes."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="The code of every concept, not only of those that the model has.")
    ] = False,
) -> None:
    """Write the two files of code that a folder needs to load with trust_remote_code=True, or compare them."""
    import json

    from .loading import MODEL_TYPE, folder_of, read_config

    folder = folder_of(model, trust=True) if check else Path(model)
    held = read_config(folder)
    if (kind := held.get("model_type")) != MODEL_TYPE:
        raise UserError(
            f"{folder} holds a model of type {kind!r}: `zoo convert {folder} TARGET` makes a zoo folder of it."
        )

    from configuration_zoo import ZooConfig
    from modeling_zoo.export import AUTO_MAP, FILES, code, differing, export_code, replace_text

    config = ZooConfig.from_pretrained(folder)
    if check:
        other = differing(folder, config)
        if other:
            raise UserError(
                f"{folder}: {' and '.join(other)} {'is' if len(other) == 1 else 'are'} not what this version of zoo "
                f"writes: `zoo export {folder}` writes it again."
            )
        typer.echo(f"{' and '.join(FILES)} are as this version of zoo writes them.")
        return
    wanted = code(None if everything else config)
    other = [name for name, text in wanted.items() if text != text_of(folder / name)]
    export_code(config, folder, everything)
    if held.get("auto_map") != AUTO_MAP:
        text = json.dumps(held | {"auto_map": AUTO_MAP}, indent=2, sort_keys=True) + "\n"
        replace_text(folder / "config.json", text)
    typer.echo(f"{' and '.join(other)} written." if other else "Nothing to write: the code is as it should be.")


def text_of(path: Path) -> str | None:
    """What a file holds, None where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
