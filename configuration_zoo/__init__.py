"""What a zoo model is. Importing this package loads neither torch nor transformers; the first use of a name does."""

from importlib import import_module

__all__ = ["ZooConfig"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module(".configuration_zoo", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
