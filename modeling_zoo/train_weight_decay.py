"""Which parameters weight decay pulls towards zero."""

import re

# A gain, a decay, a threshold: a zero is a value like any other to a matrix, and means something to these.
SPARED = re.compile(r"bias|norm(?:$|\.)|A_log$")


def get_decay_parameter_names(model):
    """Names of the parameters to decay, for the method of this name of transformers' Trainer: matrices, tables and
    convolutions.

    Spared are biases and norms, as Trainer does, and all other vectors: A_log and D of state spaces (Gu & Dao 2023,
    whose code marks both) and other decays, sinks, scales and bases of hyper-connections, factors of experts, xIELU's
    alphas.
    """
    return [name for name, value in model.named_parameters() if value.ndim >= 2 and not SPARED.search(name)]


def parameter_groups(model, weight_decay):
    """Two groups for any optimizer of torch: what learns and decays by `weight_decay`, and what only learns."""
    names = set(get_decay_parameter_names(model))
    learned = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return [
        {"params": [value for name, value in learned if name in names], "weight_decay": weight_decay},
        {"params": [value for name, value in learned if name not in names], "weight_decay": 0.0},
    ]
