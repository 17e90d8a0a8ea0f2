"""Changing the architecture of a trained model: (config, tensors) → (config, tensors) inside one model class.

    zoo.surgery.possible(config)                                        what can be changed, and how exactly
    zoo.surgery.operate("llama/", "latent/", {"attention_type": "latent"})
    zoo.surgery.operate("llama/", "small/", {"num_key_value_heads": 2}, calibrate="text.txt", evaluate="text.txt")
    zoo.surgery.heal("small/", text="text.txt", steps=1000)             # learns what it lost from the model it was
    zoo.surgery.merge("plan.yaml", "merged/")                           # mergekit's file

The flags are the language: what is wanted is a config, and `planner.py` finds the operations that lead there. One file
is one operation, `registry.py` lists them. Importing this package loads no torch; the first use of a name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What editors follow.
    from .healing import Healing, heal
    from .merging import merge
    from .operating import operate
    from .possibilities import possible
    from .report import Report

_HOME = {
    "Healing": "healing",
    "Report": "report",
    "heal": "healing",
    "merge": "merging",
    "operate": "operating",
    "possible": "possibilities",
}
__all__ = ["Healing", "Report", "heal", "merge", "operate", "possible"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
