"""Cards of what fine-tuning leaves: a model folder, or an adapter."""

import json
from pathlib import Path

from description_zoo.card import write_plain_card
from description_zoo.card_adapter import SETTINGS, write_adapter_card


def write_card(folder: str | Path, base: str | Path | None = None) -> None:
    """README.md of a folder with a zoo model or a PEFT adapter, in place of the one that is there.

    `base`: the folder a model was trained from, whose licence and name its card takes over; an adapter names its own.
    Raises ValueError for a folder with neither.
    """
    from ..inspection import config_of

    folder = Path(folder)
    if (folder / SETTINGS).is_file():
        write_adapter_card(folder)
        return
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} has no config.json or {SETTINGS}: there is no model or adapter to describe.")
    if json.loads(config.read_text(encoding="utf-8")).get("model_type") != "zoo":
        raise ValueError(f"{folder} has no zoo model: convert it first (zoo convert).")
    write_plain_card(folder, config_of(str(folder)), Path(base) if base is not None else None)
