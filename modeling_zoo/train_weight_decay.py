"""Which parameters weight decay pulls towards zero."""

import re

from torch import nn

# Gains, decays and thresholds: pulled towards zero they would mean something else.
NOT_DECAYED = re.compile(r"bias|norm(?:$|\.)|A_log$")


def get_decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters to decay: matrices, tables and convolutions. transformers' Trainer has a method of this
    name.

    Left out are biases and norms, as Trainer does, and all other vectors: A_log and D of state spaces (Gu & Dao 2023,
    whose code marks both) and other decays, sinks, scales and bases of hyper-connections, factors of experts, xIELU's
    alphas.
    """
    return [name for name, value in model.named_parameters() if value.ndim >= 2 and not NOT_DECAYED.search(name)]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for any torch optimizer: parameters that decay by `weight_decay`, and those that do not. Frozen
    parameters are in neither."""
    names = set(get_decay_parameter_names(model))
    learned = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return [
        {"params": [value for name, value in learned if name in names], "weight_decay": weight_decay},
        {"params": [value for name, value in learned if name not in names], "weight_decay": 0.0},
    ]
