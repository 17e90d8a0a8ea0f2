"""What a model folder holds, by name: what may be replaced when a model is written over another."""

import re
from fnmatch import fnmatch
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..engine.registry import OWN_TYPE, file_name, known_families
from ..errors import ConversionError
from .checkpoint import read_json
from .companions import CARD, COMPANIONS
from .sidecar import FOLDER, MANIFEST

CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_NAMES = (CONFIG, *WEIGHTS, CARD, "architecture.svg", ".gitattributes", *COMPANIONS)
_KEPT = (*WEIGHTS, MANIFEST, CARD, "*.json")
_NEIGHBOUR = re.compile(r"^from \.(\w+) import ", flags=re.MULTILINE)


def is_model(folder: Path) -> bool:
    """Whether config.json is one of a model: of zoo, of a family zoo knows, or of transformers."""
    path = folder / CONFIG
    try:
        kind = read_json(path).get("model_type") if path.is_file() and not path.is_symlink() else None
    except ConversionError:
        return False
    if not isinstance(kind, str):
        return False
    return kind == OWN_TYPE or kind in CONFIG_MAPPING_NAMES or file_name(kind) in known_families()


def strangers(folder: Path) -> list[str]:
    """Names in a model folder that zoo and transformers do not write, first the folders; links are never theirs."""
    code = {f"{name}.py" for name in code_names(folder)}
    found = []
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            found += _strangers_in(path)
        elif path.is_symlink() or not path.is_file() or not (_matches(path.name, _NAMES) or path.name in code):
            found.append(path.name)
    return sorted(found, key=lambda name: ("/" not in name, name))


def _strangers_in(folder: Path) -> list[str]:
    names = {FOLDER: _KEPT, "additional_chat_templates": ("*.jinja",)}.get(folder.name)
    if names is None:
        return [f"{folder.name}/"]
    plain = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    known = {path.name for path in plain if _matches(path.name, names)}
    return [f"{folder.name}/{path.name}" for path in folder.iterdir() if path.name not in known]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def code_names(folder: Path) -> set[str]:
    """Modules that auto_map of config.json names, and those which they import, there or not."""
    try:
        entries = read_json(folder / CONFIG).get("auto_map")
    except ConversionError:
        return set()
    flat = [entry for entry in entries.values() if isinstance(entry, str)] if isinstance(entries, dict) else []
    waiting, seen = [entry.rpartition(".")[0] for entry in flat if "--" not in entry], set()
    while waiting:
        name = waiting.pop()
        path = folder / f"{name}.py"
        if name in seen or not re.fullmatch(r"\w+", name):
            continue
        seen.add(name)
        if path.is_file():
            waiting += _NEIGHBOUR.findall(path.read_text(encoding="utf-8", errors="replace"))
    return seen
