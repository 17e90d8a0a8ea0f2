"""zoo: one transformers model in which every modern decoder concept is a config flag. The public face.

    import zoo
    zoo.convert("path/to/llama", "path/to/zoo")     # a published checkpoint -> a folder that loads anywhere
    model = zoo.load("path/to/llama")               # any folder or Hub id zoo knows -> a ZooForCausalLM
    zoo.inspect("path/to/llama")                    # what each layer is and costs, as a dict
    zoo.diff("llama3-8b", "qwen3-8b")               # in what two models differ, as a dict
    zoo.Config(layer_types=["sliding_attention"])   # what a model is: one field per concept

Importing this package loads neither torch nor transformers; the first use of a name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What editors follow.
    from configuration_zoo import ZooConfig as Config
    from configuration_zoo.version import __version__
    from conversion import ConversionError, convert, load
    from zoo.inspection import diff, inspect

_HOME = {
    "__version__": ("configuration_zoo.version", "__version__"),
    "Config": ("configuration_zoo", "ZooConfig"),
    "ConversionError": ("conversion", "ConversionError"),
    "convert": ("conversion", "convert"),
    "diff": ("zoo.inspection", "diff"),
    "inspect": ("zoo.inspection", "inspect"),
    "load": ("conversion", "load"),
}
__all__ = ["Config", "ConversionError", "__version__", "convert", "diff", "inspect", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package, attribute = _HOME[name]
    return getattr(import_module(package), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
