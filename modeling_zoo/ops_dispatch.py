"""What a faster form asks before it looks at a size or a number: a comparison of these would bind a traced graph to
them."""

import torch


def is_traced():
    """Whether what runs is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def has_values(x):
    """Whether a decision may look at the numbers of `x`: not while a graph is traced, not without data."""
    return x.device.type != "meta" and not is_traced()


def is_bare(x):
    """Whether `x` is computed here and now by a CPU, neither recorded nor traced."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and not is_traced()
