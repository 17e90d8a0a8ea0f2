"""Per-layer embeddings against their formula, token by token in float64."""

import math

import pytest
import torch
from combinations import ROWS, SIZES
from random_models import randomize

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import STREAM_BLOCKS
from modeling_zoo import ZooForCausalLM

WIDTH, LAYERS = 10, SIZES["num_hidden_layers"]
FLAGS = {**SIZES, "hidden_size_per_layer_input": WIDTH, "hidden_act": "gelu_pytorch_tanh", "norm_eps": 1e-3}


def build(**flags):
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**{**FLAGS, **flags})).eval()
    randomize(model)
    return model


def normed(x, weight):
    return x / math.sqrt(float((x * x).mean()) + 1e-3) * weight


def slow_rows(model, tokens, stream):
    """[T, L, p]: one token and one layer after the other."""
    part = {name: tensor.double() for name, tensor in model.model.per_layer_embeddings.state_dict().items()}
    table, weight = part["embed_tokens_per_layer.weight"], part["per_layer_projection_norm.weight"]
    rows = torch.zeros(len(tokens), LAYERS, WIDTH, dtype=torch.double)
    for t, token in enumerate(tokens):
        context = part["per_layer_model_projection.weight"] @ stream[t] / math.sqrt(len(stream[t]))
        for layer in range(LAYERS):
            here = slice(layer * WIDTH, (layer + 1) * WIDTH)
            own = table[token][here] * math.sqrt(WIDTH)
            rows[t, layer] = (own + normed(context[here], weight)) / math.sqrt(2)
    return rows


@torch.no_grad()
def test_rows_and_what_a_layer_makes_of_them():
    model = build()
    tokens = torch.randint(1, 101, (1, 7))
    stream = model.model.embed_tokens(tokens)
    expected = slow_rows(model, tokens[0].tolist(), stream[0].double())
    found = model.model.per_layer_embeddings(tokens, stream)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-5)

    layer = model.model.layers[1].per_layer_input
    part = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    for t in range(7):
        gated = part["per_layer_input_gate.weight"] @ stream[0, t].double()
        gated = torch.nn.functional.gelu(gated, approximate="tanh") * expected[t, 1]
        added = normed(part["per_layer_projection.weight"] @ gated, part["post_per_layer_input_norm.weight"])
        torch.testing.assert_close(layer(stream, found[:, :, 1])[0, t].double(), added, rtol=1e-5, atol=1e-5)


# Refused together with several streams, or a stream of another dtype.
ONE_STREAM = [
    row
    for row in ROWS["block"]
    if row.get("block_type") not in STREAM_BLOCKS and "precision.residual_in_fp32" not in row
]


@pytest.mark.parametrize("block", ONE_STREAM, ids=lambda row: str(row.get("block_type", "default")))
@torch.no_grad()
def test_every_topology_adds_it_where_its_layer_ends(block):
    """With one layer's map back to the stream at zero, that layer is the one without; otherwise it is not."""
    model = build(**block)
    scale = getattr(model.model.layers[-1], "layer_scalar", torch.ones(1))
    tokens = torch.randint(1, 101, (1, 7))
    last, given = model.model.layers[-1], {}
    handle = last.per_layer_input.register_forward_hook(
        lambda module, inputs, output: given.update(all=(*inputs, output))
    )
    ends = last.register_forward_hook(lambda module, inputs, output: given.update(end=output))
    model(tokens)
    handle.remove(), ends.remove()
    before, row, added = given["all"]
    assert torch.equal(row, model.model.per_layer_embeddings(tokens, model.model.embed_tokens(tokens))[:, :, -1])
    torch.testing.assert_close(given["end"], (before + added) * scale)


@torch.no_grad()
def test_embeddings_need_the_rows_beside_them():
    model = build()
    tokens = torch.randint(1, 101, (2, 7))
    embeds = model.model.embed_tokens(tokens)
    rows = model.model.per_layer_embeddings.rows(tokens)
    assert torch.equal(model(inputs_embeds=embeds, per_layer_inputs=rows).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="give input_ids, or per_layer_inputs"):
        model(inputs_embeds=embeds)
    with pytest.raises(ValueError, match="leave it out beside input_ids"):
        model(tokens, per_layer_inputs=rows)


@torch.no_grad()
def test_a_resized_vocabulary_has_rows_for_its_new_tokens():
    model = build()
    tokens = torch.randint(1, 101, (2, 7))
    before = model(tokens).logits
    model.resize_token_embeddings(112, mean_resizing=False)
    assert model.model.per_layer_embeddings.embed_tokens_per_layer.weight.shape == (112, LAYERS * WIDTH)
    assert model.config.vocab_size_per_layer_input == 112
    assert torch.equal(model(tokens).logits[..., :101], before)
    assert model(torch.tensor([[111]])).logits.shape[-1] == 112
