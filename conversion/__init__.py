"""Checkpoints in and out: one file per foreign family, one engine for both directions.

    from conversion import convert, load
    convert("path/to/llama", "path/to/zoo")                   # foreign folder or Hub id -> zoo folder
    convert("path/to/zoo", "path/to/back", to="llama")        # and back, bit for bit
    model = load("path/to/llama")                             # straight into a ZooForCausalLM

`engine/family.py` says how to add a family.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ConversionError": "errors",
    "Family": "engine.family",
    "Report": "engine.transfer",
    "convert": "engine.transfer",
    "export_config": "engine.config_bridge",
    "family_of": "engine.registry",
    "import_config": "engine.config_bridge",
    "known_families": "engine.registry",
    "load": "engine.loading",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # On first use: listing the families, or writing one, needs neither torch nor the model.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
