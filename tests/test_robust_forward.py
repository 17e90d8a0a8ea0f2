"""What works with one concept works with all: every norm, block and mixer in every dtype, and in the ways people use
Llama."""

import pytest
import torch
from combinations import ROWS, SIZES
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

# Largest difference to float32 with the same weights, relative to the largest logit.
ROUNDING = {torch.float64: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}


def model_of(fields):
    """A model with every parameter random; None for a mixture that the config refuses."""
    try:
        config = ZooConfig(**{**SIZES, **fields})
    except (StrictDataclassError, ValueError):
        return None
    torch.manual_seed(0)
    model = ZooForCausalLM(config)
    randomize(model)
    return model.eval()


def some_tokens():
    return torch.randint(6, 101, (2, 11), generator=torch.Generator().manual_seed(1))


def distance(found, wanted):
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


def named(rows):
    return [pytest.param(row, id=" ".join(map(str, row.values())) or "default") for row in rows]


# -- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(11)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["", "residual_in_fp32"])
@pytest.mark.parametrize("norm", named(ROWS["norm"]))
@pytest.mark.parametrize("block", named(ROWS["block"]))
def test_every_norm_in_every_block_in_every_dtype(block, norm, wide, dtype):
    model, tokens = model_of({**block, **norm, "residual_in_fp32": wide}), some_tokens()
    if model is None:
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    wanted = model(tokens).logits
    model.to(dtype)
    found = model(tokens, labels=tokens)
    assert found.logits.dtype == dtype and distance(found.logits, wanted) < ROUNDING[dtype]
    found.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with torch.no_grad():
        begun = model(tokens[:, :-1], use_cache=True)
        step = model(tokens[:, -1:], past_key_values=begun.past_key_values)
    assert distance(step.logits, found.logits[:, -1:]) < ROUNDING[dtype]
