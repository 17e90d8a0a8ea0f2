"""Rows of flags one by one, each set of them once, as random models in float64."""

import json

import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize

from modeling_zoo import ZooConfig, ZooForCausalLM

DROPOUTS = ("attention_dropout", "embedding_dropout", "residual_dropout", "router.jitter_noise")


def distinct(rows):
    """{number: row}, each set of flags once."""
    places = {json.dumps(row, sort_keys=True, default=str): n for n, row in reversed([*enumerate(rows)])}
    return {n: rows[n] for n in sorted(places.values())}


def model_of(row):
    """A random model in float64, where sums in another order choose the same experts and keys; None for flags that no
    model can have."""
    try:
        config = ZooConfig(**{**SIZES, **{field: value for field, value in row.items() if field not in DROPOUTS}})
    except (ValueError, StrictDataclassError):
        return None
    model = ZooForCausalLM(config).double()
    randomize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.6)
    return model
