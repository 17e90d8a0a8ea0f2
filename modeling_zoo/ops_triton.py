"""Kernels in Triton as operations of torch, which a compiled graph holds as one node each."""

import re
from collections.abc import Callable
from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# What kernels multiply.
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def register_operation(
    module: str, name: str, schema: str, launch: Callable, empty: Callable
) -> SimpleNamespace | None:
    """`launch` as an operation of this `schema`, with `empty` for what it returns without the numbers: `call` of the
    result. None without triton.

    The operation is named after its module as well: a process can hold several copies of one file.
    """
    if triton is None:
        return None
    name += "_" + re.sub(r"\W", "_", module)
    while hasattr(torch.ops.zoo, name):
        name += "_"
    library = torch.library.Library("zoo", "FRAGMENT")
    library.define(name + schema)
    library.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zoo::{name}", empty, lib=library)
    return SimpleNamespace(call=getattr(torch.ops.zoo, name).default, library=library)


def power_of_two(count: int) -> int:
    """The least power of two that is not less."""
    return 1 << (count - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """How many programs `device` runs side by side, at least; some number on a CPU, where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
