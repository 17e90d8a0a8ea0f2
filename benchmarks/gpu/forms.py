"""The plain forms of the operations, where the kernels of zoo would be chosen: what these are compared with."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Functions of modeling_zoo that say whether a kernel is chosen.
CHOOSERS = ("use_triton",)


@contextmanager
def plain_forms() -> Iterator[None]:
    """Within the block no operation of zoo chooses a Triton kernel."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("modeling_zoo.")]
    found = [(module, name, vars(module)[name]) for module in modules for name in CHOOSERS if name in vars(module)]
    for module, name, _ in found:
        setattr(module, name, lambda *_, **__: False)
    try:
        yield
    finally:
        for module, name, chooser in found:
            setattr(module, name, chooser)


def has_triton() -> bool:
    """Whether the kernels of zoo could be chosen at all."""
    return importlib.util.find_spec("triton") is not None
