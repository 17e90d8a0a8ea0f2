"""Training: one command from text to a model folder, and its parts for a loop of one's own.

    zoo.training.train("config.yaml")                        # what `zoo train` does
    zoo.training.sweep("sweep.yaml")                         # what `zoo sweep` does
    zoo.training.parameter_groups(model, learning_rate=3e-3) # decay, Muon's matrices, widths of muP
    zoo.training.ExpertBalance()                             # a TrainerCallback: expert load, balancing by a bias
    zoo.training.write_card("adapter")                       # the card of a trained folder or adapter

Importing this package loads neither torch nor transformers; the first use of a name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What editors follow.
    from .balance import ExpertBalance
    from .cards import write_card
    from .groups import parameter_groups
    from .muon import MuonAdamW
    from .recipe import RecipeError, read_recipe
    from .run import train
    from .variants import sweep
    from .widths import mup_config, scale_width

_HOME = {
    "ExpertBalance": "balance",
    "MuonAdamW": "muon",
    "mup_config": "widths",
    "parameter_groups": "groups",
    "read_recipe": "recipe",
    "RecipeError": "recipe",
    "scale_width": "widths",
    "sweep": "variants",
    "train": "run",
    "write_card": "cards",
}
__all__ = [
    "ExpertBalance", "MuonAdamW", "RecipeError", "mup_config", "parameter_groups", "read_recipe", "scale_width",
    "sweep", "train", "write_card",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
