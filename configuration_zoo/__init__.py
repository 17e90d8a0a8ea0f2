"""What a zoo model is. Importing this package loads neither torch nor transformers; the first use of a name does."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What editors follow.
    from configuration_zoo.configuration_zoo import ZooConfig

__all__ = ["ZooConfig"]
# What the installed packages do for a config, which the copy of it in a model folder does without: name -> function.
HOOKS = {
    "advice": "description_zoo.advice:advice",
    "as_table": "description_zoo.notebook:as_table",
    "export_code": "modeling_zoo.export:export_code",
    "fit_to_ranks": "zoo.training.ranks:fit_to_ranks",
    "help_text": "description_zoo.flags:help_text",
    "preset": "configuration_zoo.presets:preset",
    "refuse_cut_rows": "zoo.training.cut_rows:refuse_cut_rows",
    "replace_empty_card": "description_zoo.card:replace_empty_card",
}


def hook(name: str) -> Callable:
    """The function that `HOOKS` names."""
    return resolve_name(HOOKS[name])


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".configuration_zoo", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
