"""Attention residuals: the same as Inkling 2's class and as the formula, and in every way a model is run."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from random_models import randomize
from transformers.models.inkling2 import modeling_inkling2 as inkling2
from transformers.models.inkling2.configuration_inkling2 import Inkling2TextConfig
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.block_attention_residual import DepthRead
from modeling_zoo.mlp_dense import SoftcappedSiLU, gate_and_clamp

SIZE = "block_config.attn_res_block_size"
FLAGS = {"block_type": "attention_residual", SIZE: 2, "norm_eps": 1e-3}
SAME = {"rtol": 1e-5, "atol": 1e-5}


def build(**fields):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **FLAGS, **fields}))
    randomize(model)
    return model.eval()


def softmax_over_depth(part, states):
    """Σ p v, token by token, in float64."""
    weight, query, out = part.norm.weight.double(), part.query.double(), torch.zeros_like(states[0])
    for place in torch.cartesian_prod(*map(torch.arange, states[0].shape[:2])).tolist():
        tokens = [state[tuple(place)] for state in states]
        scores = torch.stack([query @ (v / (v.square().mean() + 1e-3).sqrt() * weight) for v in tokens])
        out[tuple(place)] = sum(p * v for p, v in zip(scores.softmax(0), tokens, strict=True))
    return out


@torch.no_grad()
def test_reading_over_depth_equals_its_formula():
    part = build().model.layers[2].mlp_res
    states = [torch.randn(2, 7, 48, dtype=torch.double) * size for size in (1, 3, 0.5)]
    found = part([one.float() for one in states[:2]], states[2].float())
    torch.testing.assert_close(found.double(), softmax_over_depth(part, states), **SAME)
    assert torch.equal(part([], found), found)


@torch.no_grad()
def test_the_weights_over_depth_are_those_of_transformers():
    """Inkling 2 sums what is normalised, so that states of size one make both the same."""
    original = inkling2.Inkling2BlockAttentionResidual(Inkling2TextConfig(hidden_size=48))
    part = DepthRead(ZooConfig(**{**SIZES, **FLAGS, "norm_eps": 1e-12}))
    randomize(part)
    original.query.copy_(part.query * part.norm.weight * 48**0.5)
    states = torch.nn.functional.normalize(torch.randn(2, 7, 4, 48), dim=-1) * 48**0.5
    expected = original(states[:, :, :3], states[:, :, 3])[0]
    torch.testing.assert_close(part(list(states[:, :, :3].unbind(2)), states[:, :, 3]), expected, **SAME)


@torch.no_grad()
def test_a_smoothly_bounded_unit_equals_that_of_transformers():
    original = inkling2.Inkling2SoftcappedSwiGLU(Inkling2TextConfig(mlp_gate_softcap=0.7, mlp_up_softcap=1.9))
    gate, up = torch.randn(2, 7, 48) * 3, torch.randn(2, 7, 48) * 3
    found = gate_and_clamp(SoftcappedSiLU(0.7), gate, up, None, up_cap=1.9)
    torch.testing.assert_close(found, original(gate, up), **SAME)


@torch.no_grad()
def test_layers_read_finished_blocks_and_the_running_sum():
    model, tokens, given = build(), torch.randint(3, 101, (2, 7)), {}
    for index, layer in enumerate(model.model.layers):
        for name in ("attn_res", "mlp_res"):
            if getattr(layer, name) is not None:
                getattr(layer, name).register_forward_hook(
                    lambda module, inputs, output, key=(index, name): given.update({key: (*inputs, output)})
                )
        for name in ("self_attn", "mlp"):
            getattr(layer, name).register_forward_hook(
                lambda module, inputs, output, key=(index, name): given.update({key: output})
            )
    last = []
    model.model.output_res.register_forward_hook(lambda module, inputs, output: last.append(inputs))
    model(tokens)
    embedding = model.model.embed_tokens(tokens)
    out = {key: value[0] if isinstance(value, tuple) else value for key, value in given.items() if "res" not in key[1]}
    first = out[0, "self_attn"] + out[0, "mlp"] + out[1, "self_attn"] + out[1, "mlp"]
    expected = {
        (0, "mlp_res"): [embedding, out[0, "self_attn"]],
        (1, "attn_res"): [embedding, out[0, "self_attn"] + out[0, "mlp"]],
        (2, "attn_res"): [embedding, first],
        (2, "mlp_res"): [embedding, first, out[2, "self_attn"]],
    }
    for key, states in expected.items():
        finished, current, _ = given[key]
        for found, wanted in zip([*finished, current], states, strict=True):
            torch.testing.assert_close(found, wanted, **SAME)
    finished, current = last[0]
    for found, wanted in zip(
        [*finished, current], [embedding, first, out[2, "self_attn"] + out[2, "mlp"]], strict=True
    ):
        torch.testing.assert_close(found, wanted, **SAME)


@pytest.mark.parametrize(
    "fields",
    [
        {SIZE: 1},
        pytest.param({"num_kv_shared_layers": 1, "hidden_size_per_layer_input": 7}, marks=pytest.mark.long),
        pytest.param(
            {
                "layer_types": ["linear_attention", "full_attention", "sliding_attention"],
                "linear_attention_type": "kimi_delta_attention",
                "sliding_window": 4,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_layer_types": ["sparse", "dense", "sparse"],
                "moe_latent_size": 16,
                "router.latent_norm": True,
                "swiglu_config": {"gate_softcap": 1.2, "up_softcap": 0.9},
            },
            marks=pytest.mark.long,
        ),
    ],
    ids=["", "shared keys and rows", "recurrence and latent experts"],
)
def test_every_way_to_run_gives_the_same(fields, tmp_path):
    model, tokens = build(**fields), torch.randint(3, 101, (2, TOKENS))
    with torch.no_grad():
        expected = model(tokens).logits
        check_cached(model, tokens, expected)
        check_padded(model, tokens, expected)
        check_packed(model, tokens, expected)
        check_generated(model, tokens)
        check_saved(model, tokens, expected, tmp_path, remote=True)
    check_backward(model, tokens)


def test_tools_know_them():
    report = measure(build().config)
    assert report["parameters"] == build().num_parameters()
    assert report["layers"][0]["residual"] == "attention_residual rms_norm, attention over blocks of 2 layers"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block_type": ["attention_residual", "pre_norm", "pre_norm"]}, "so every layer has it"),
        ({"block_type": "pre_norm"}, "block_config.attn_res_block_size=2 only means something with"),
        ({"num_mtp_layers": 1}, "cannot be combined with block_type 'attention_residual'"),
        (
            {"router.latent_norm": True, "num_experts": 4, "num_experts_per_tok": 2},
            "router.latent_norm=True only means something with moe_latent",
        ),
        ({"swiglu_config.gate_softcap": 1.0, "hidden_act": "gelu"}, "gate_softcap=1.0 needs hidden_act='silu'"),
        ({"swiglu_config": {"gate_softcap": 1.0, "dense_alpha": 1.7}}, "dense_alpha=1.7 only means something with"),
        ({"swiglu_config.up_softcap": 1.0, "gated_mlp": False}, "gated_mlp=True"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises((StrictDataclassError, ValueError), match=says):
        ZooConfig(**{**SIZES, **FLAGS, **fields})
