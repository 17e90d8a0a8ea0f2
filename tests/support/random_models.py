"""Models of other families with every parameter random, so that no wrong mapping can hide behind a one or a zero."""

import math

import pytest
import torch
import transformers
from published_models import PUBLISHED
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion.engine.registry import family_of, file_name
from conversion.engine.their_config import class_of
from modeling_zoo import ZooForCausalLM

# Buffers computed from the config; random ones would describe no model at all.
COMPUTED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay", "inv_freq", "position_ids")


def is_here(name):
    """Whether the installed transformers has the classes of the family file `name`; an older one may not."""
    family = family_of(name)
    if family.config_class:
        return True
    known = {family.reads} & {*CONFIG_MAPPING} if family.reads else name in map(file_name, CONFIG_MAPPING)
    return bool(known) and (not family.oracle or hasattr(transformers, family.oracle))


def their_class_config(model_type, family, arguments):
    """transformers' config object of a family file's `tiny` variant; skips the test where it has no such class."""
    if not is_here(model_type):
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    return class_of(model_type, family)(**{"attn_implementation": "eager", **arguments})


def oracle_of(family, model_type):
    """The class whose models zoo's must equal: transformers' own, or a slow reference where it has none."""
    if family is not None and family.config_class:
        return PUBLISHED[model_type]
    return getattr(transformers, family.oracle) if family is not None and family.oracle else AutoModelForCausalLM


def build(config, family=None, dtype=torch.float32):
    """transformers' own model of a config, all parameters and all buffers it saves random."""
    oracle = oracle_of(family, config.model_type)
    model = AutoModelForCausalLM.from_config(config) if oracle is AutoModelForCausalLM else oracle._from_config(config)
    randomize(model)
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()


@torch.no_grad()
def randomize(model):
    """Weights that keep activations near one; norms, biases, gates and buffers away from their initial values."""
    owners = dict(model.named_modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.numel() and tensor.is_floating_point() and not name.endswith(COMPUTED):
            _fill(name, tensor, owners[name.rpartition(".")[0]])
        elif name.endswith("tid2eid"):
            # Of each token so many different experts, of all.
            tensor.copy_(
                torch.rand(len(tensor), owners[name.rpartition(".")[0]].num_experts).argsort()[:, : tensor.shape[1]]
            )


def _fill(name, tensor, owner):
    if name.endswith("A_log"):
        tensor.uniform_(1, 8).log_()
    elif isinstance(owner, nn.Embedding):
        tensor.normal_(0, 1)
    elif tensor.ndim >= 2:
        tensor.normal_(0, 1.3 / math.sqrt(tensor.shape[-1]))
    elif name.endswith(("weight", ".D")):
        # A skip around a recurrence (D) near zero leaves what a norm behind it would blow up.
        tensor.uniform_(0.5, 1.5)
    else:
        tensor.normal_(0, 0.3)


def parameters_at_work(config):
    """(all parameters, those of one token) of a zoo model of routed experts, counted without allocating them."""
    with torch.device("meta"):
        model = ZooForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    idle = experts * (config.num_experts - config.num_experts_per_tok) // config.num_experts
    return total, total - idle
