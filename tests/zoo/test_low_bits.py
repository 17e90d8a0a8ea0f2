"""`zoo generate --quantize`: linear maps in eight or four bits, by torchao, against rounding done by hand."""

import sys

import pytest
import torch
from combinations import EXPERTS, LATENT, SIZES
from places import STORIES
from random_models import randomize
from torch import nn

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from zoo.cli.errors import UserError
from zoo.cli.low_bits import in_few_bits

WIDE = {
    **SIZES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 112,
    "num_attention_heads": 4,
    "head_dim": 16,
}


def build(**fields):
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**{**WIDE, **fields})).eval()
    randomize(model)
    return model.to(torch.bfloat16)


def by_rows(weight):
    """The distance of two numbers of eight bits: a row's largest / 127.5."""
    return weight.abs().amax(1, keepdim=True) / 127.5


def by_groups(weight):
    """That of two of sixteen numbers between the least and the largest of 32."""
    groups = weight.unflatten(1, (-1, 32))
    return ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, dim=1)


@pytest.mark.parametrize(("word", "distance"), [("int8", by_rows), ("int4", by_groups)])
@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": True}, {**EXPERTS, "moe_intermediate_size": 32}], ids=str
)
@torch.no_grad()
def test_a_model_computes_with_the_nearest_numbers(word, distance, fields):
    model, plain, rounded = (build(**fields) for _ in range(3))
    names = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    shapes = {name: plain.get_submodule(name).weight.shape for name in names}
    fit = [name for name in names if word == "int8" or not shapes[name][1] % 32 and not shapes[name][0] % 16]
    assert in_few_bits(model, word) == len(fit) > 10
    for name in fit:
        weight, matrix = plain.get_submodule(name).weight.float(), model.get_submodule(name)
        # What it maps each channel to.
        found = matrix(torch.eye(weight.shape[1], dtype=torch.bfloat16)).T
        spare = 2**-7 * weight.abs().max()
        assert (found - weight).abs().sub(0.5 * distance(weight)).max() <= spare
        assert not torch.equal(found, weight.to(found.dtype))
        rounded.get_submodule(name).weight = nn.Parameter(found.contiguous())
    for name, value in plain.named_parameters():
        module = name.rpartition(".")[0]
        assert module in fit or torch.equal(value, model.get_parameter(name)), name
    tokens = torch.randint(3, 112, (2, 13))
    found, expected = model(tokens).logits, rounded(tokens).logits
    # Of most tokens: rounding in bfloat16 may send one to another expert.
    assert (found - expected).abs().amax(-1).median() <= 0.05 * expected.abs().max()


@torch.no_grad()
def test_tokens_come_one_by_one_as_at_once():
    model = build(**LATENT, num_attention_heads=6)
    in_few_bits(model, "int8")
    tokens = torch.randint(3, 112, (1, 9))
    whole, cache, steps = model(tokens).logits, None, []
    for token in tokens.split(1, dim=1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() <= 0.05 * whole.abs().max()


@pytest.mark.parametrize("word", ["int8", "int4"])
def test_the_command_line_tells_the_same_story(zoo, word):
    options = ("generate", STORIES, "--prompt", "Once upon a time", "--max-new-tokens", 12, "--temperature", 0)
    assert zoo(*options, "--quantize", word)[1] == zoo(*options)[1]


def test_what_cannot_be_is_one_sentence(zoo, monkeypatch):
    options = ("generate", STORIES, "--prompt", "Once")
    assert zoo(*options, "--quantize", "int3")[::2] == (1, "zoo: --quantize int3 is not one of int8, int4.\n")
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert zoo(*options, "--quantize", "int8")[::2] == (1, "zoo: --quantize needs torchao: pip install torchao\n")


def test_a_model_of_odd_widths_has_nothing_in_four_bits():
    with pytest.raises(UserError, match="no linear map has a multiple of 32 inputs and of 16 outputs"):
        in_few_bits(build(hidden_size=60, intermediate_size=90, head_dim=12), "int4")
