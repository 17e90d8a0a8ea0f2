"""What of a folder belongs on the Hub, and what it lacks to be loaded from there."""

import json
import re
from pathlib import Path

from .errors import UserError

CARD, CONFIG = "README.md", "config.json"
ADAPTER, TOKENIZER = "adapter_config.json", "tokenizer_config.json"
# What training and Python leave beside a model: of no use to who loads it.
LEFTOVERS = {"__pycache__", "runs", "wandb"}
STATES = {"optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin"}
NEIGHBOUR = re.compile(r"^from \.(\w+) import ", flags=re.MULTILINE)


def files_to_push(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """{path in the repository: file}, all but hidden files and leftovers of training; and the pickles, which stay.

    Raises ConversionError for a link out of the folder and for what is no file."""
    from conversion.files.folder_gate import check_file
    from conversion.files.pickles import is_pickle

    files, pickles = {}, []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        left = any(part.startswith((".", "checkpoint-")) or part in LEFTOVERS for part in parts)
        if left or path.name in STATES or re.match(r"rng_state.*\.pth", path.name):
            continue
        name = "/".join(parts)
        check_file(folder, name)
        if path.is_file() and is_pickle(path):
            pickles.append(name)
        elif path.is_file():
            files[name] = path
    if pickles and not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"{folder} has pickles and no safetensors ({pickles[0]}), and pickles can run code when they are opened: "
            "save it again with save_pretrained."
        )
    return files, pickles


def complaints(folder: Path) -> str | None:
    """Why this folder could not be loaded from the Hub, in one sentence; None if it could."""
    if not folder.is_dir():
        return f"{folder} is not a folder."
    if not (folder / CONFIG).is_file():
        known = (folder / ADAPTER).is_file() or (folder / TOKENIZER).is_file()
        return None if known else f"{folder} has no {CONFIG}, {ADAPTER} or {TOKENIZER}: there is nothing to push."
    config = read_object(folder / CONFIG)
    if config is None:
        return f"{folder / CONFIG} is not a JSON object."
    return missing_code(folder, config) or missing_weights(folder)


def missing_code(folder: Path, config: dict) -> str | None:
    """The first file of code that auto_map, or another file of code, asks for and the folder has not."""
    if config.get("model_type") == "zoo" and not config.get("auto_map"):
        return f"{folder / CONFIG} has no auto_map, so the Hub would not find the code: save the model again with zoo."
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        return f"{folder / CONFIG} has auto_map={auto_map!r}, which must be an object: save the model again."
    entries = [entry for entry in auto_map.values() if isinstance(entry, str)]
    waiting, seen = [entry.rpartition(".")[0] for entry in entries if "--" not in entry], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = folder / f"{name}.py"
        if not path.is_file():
            return f"{folder} lacks {name}.py, which its code needs: save the model again with zoo."
        waiting += NEIGHBOUR.findall(path.read_text(encoding="utf-8"))
    return None


def missing_weights(folder: Path) -> str | None:
    """The first shard an index names and the folder has not. No weights at all is a config, which may be pushed."""
    for index in folder.glob("*.index.json"):
        weight_map = (read_object(index) or {}).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            return f"{index} has no weight_map from tensor names to file names: save the model again."
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).is_file():
                return f"{folder} lacks {shard}, which {index.name} names."
    return None


def wants_card(folder: Path) -> bool:
    """Whether a card can be written: for a zoo model without one, or an adapter with none or with PEFT's template."""
    from description_zoo.card_adapter import is_blank_card

    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        card = folder / CARD
        return not card.is_file() or is_blank_card(card.read_text(encoding="utf-8", errors="replace"))
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else None
    return not (folder / CARD).is_file() and (config or {}).get("model_type") == "zoo"


def read_object(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
