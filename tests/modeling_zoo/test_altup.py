"""AltUp, LAuReL and Gaussian top-k: the same as Gemma 3n's own classes, and in every way a model is run."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from random_models import randomize
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n import modeling_gemma3n as theirs
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.block_altup import AltUp, AltUpEnds, Laurel, as_large_as
from modeling_zoo.block_per_layer_input import AltUpInput
from modeling_zoo.mlp_dense import make_dense_mlp

OWN = {"altup_num_inputs": 3, "altup_active_idx": 1, "altup_coef_clip": 0.2, "laurel_rank": 5}
FLAGS = {"block_type": "altup", "hidden_size_per_layer_input": 10, "norm_eps": 1e-3}
FLAGS |= {"precision.norm": "scale_then_cast"}
SAME = {"rtol": 1e-5, "atol": 1e-5}


def config(**fields):
    return ZooConfig(**{**SIZES, **FLAGS, "block_config": OWN, **fields})


def their_config(**fields):
    return Gemma3nTextConfig(hidden_size=48, num_hidden_layers=2, rms_norm_eps=1e-3, **OWN, **fields)


def build(**fields):
    model = ZooForCausalLM(config(**fields))
    randomize(model)
    return model.eval()


@pytest.mark.parametrize("training", [True, False], ids=["training", ""])
def test_updates_equal_those_of_transformers(training):
    original, ours = theirs.Gemma3nTextAltUp(their_config()), AltUp(config())
    randomize(ours)
    for module in (original, ours):
        module.load_state_dict(ours.state_dict(), strict=False)
        module.train(training)
    streams, output = torch.randn(2, 7, 3, 48), torch.randn(2, 7, 48)
    predicted = original.predict(streams.permute(2, 0, 1, 3))
    corrected = original.correct(predicted, output)
    torch.testing.assert_close(ours.predict(streams), predicted.permute(1, 2, 0, 3), **SAME)
    found = ours.correct(ours.predict(streams), output)
    torch.testing.assert_close(found, corrected.permute(1, 2, 0, 3), **SAME)
    # The clamp changes something, in training alone.
    free = AltUp(config(block_config={**OWN, "altup_coef_clip": None})).train(training)
    free.load_state_dict(ours.state_dict())
    assert torch.allclose(free.correct(free.predict(streams), output), found, **SAME) is not training


@torch.no_grad()
def test_a_row_goes_to_all_streams_but_the_first():
    part = AltUpInput(config())
    randomize(part)
    streams, row = torch.randn(2, 7, 3, 48), torch.randn(2, 7, 10)
    gated = part.act_fn(part.per_layer_input_gate(streams[:, :, 1] * part.correct_output_scale)) * row
    given = part.post_per_layer_input_norm(part.per_layer_projection(gated))
    expected = torch.stack((torch.zeros_like(given), given, given), dim=2)
    torch.testing.assert_close(part(streams, row), expected, **SAME)


@torch.no_grad()
def test_the_low_rank_map_equals_that_of_transformers():
    original, ours = theirs.Gemma3nTextLaurelBlock(their_config()), Laurel(config())
    randomize(ours)
    original.load_state_dict(ours.state_dict())
    stream, normed = torch.randn(2, 7, 48), torch.randn(2, 7, 48)
    torch.testing.assert_close(ours(stream, normed), (stream + original(normed)) / 2**0.5, **SAME)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_sparse_activation_equals_that_of_transformers(share):
    sizes = {"intermediate_size": 80, "activation_sparsity_pattern": [0.0, share]}
    original = theirs.Gemma3nTextMLP(their_config(**sizes), layer_idx=1)
    ours = make_dense_mlp(config(hidden_act="gelu_pytorch_tanh", **{"swiglu_config.activation_sparsity": share}))
    randomize(ours)
    original.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(ours(x), original(x), **SAME)
    silent = (ours.unit(ours.gate_proj(x), torch.ones(80)) == 0).float().mean()
    assert abs(silent - share) < 0.1


@torch.no_grad()
def test_all_streams_start_and_end_as_large_as_the_first():
    ends = AltUpEnds(config())
    randomize(ends)
    x = torch.randn(2, 7, 48) * 3
    streams = ends.spread(x)
    assert torch.equal(streams[:, :, 0], x)
    sizes = streams.square().mean(-1)
    torch.testing.assert_close(sizes, sizes[:, :, :1].expand_as(sizes), **SAME)
    first, second, third = streams.double().unbind(2)
    parts = [linear.weight.double() for linear in ends.altup_unembed_projections]
    expected = first + as_large_as(second @ parts[0].T, first) + as_large_as(third @ parts[1].T, first)
    torch.testing.assert_close(ends(streams), (expected / 3).float(), **SAME)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"hidden_size_per_layer_input": None, "num_kv_shared_layers": 1}, marks=pytest.mark.long),
        pytest.param(
            {
                "layer_types": ["linear_attention", "full_attention", "sliding_attention"],
                "linear_attention_type": "gated_delta_net",
                "sliding_window": 4,
                "norm_type": "layer_norm",
                "precision.norm": "native",
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_layer_types": ["sparse", "dense", "sparse"],
            },
            marks=pytest.mark.long,
        ),
    ],
    ids=["", "shared keys", "recurrence and experts"],
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


def test_ranks_do_not_split_a_gate_whose_mean_is_taken():
    plan = config(**{"swiglu_config.activation_sparsity": 0.5}).base_model_tp_plan
    assert not any(".mlp." in name for name in plan)
    assert any(".mlp." in name for name in config().base_model_tp_plan)


def test_tools_know_them():
    model = build()
    report = measure(model.config)
    assert report["parameters"] == model.num_parameters()
    assert (
        report["layers"][0]["residual"] == "altup rms_norm, a map of rank 5 beside attention, 3 streams, one computed"
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block_type": ["altup", "sandwich_norm", "altup"]}, "'altup' hands more than one stream from layer to layer"),
        ({"block_type": "sandwich_norm"}, "block_config.altup_num_inputs=3 only means something with"),
        ({"block_type": "pre_norm", "block_config": {"laurel_rank": 5}}, "block_config.laurel_rank=5 only means"),
        ({"block_config": {"altup_num_inputs": 1}}, "altup_num_inputs=1 must be at least 2"),
        ({"block_config": {"altup_num_inputs": 2, "altup_active_idx": 2}}, "altup_active_idx=2 must be below"),
        (
            {"hidden_size_per_layer_input": None, "block_config": {"altup_correct_scale": True}},
            "altup_correct_scale=True only means something with hidden_size_per_layer_input",
        ),
        ({"num_mtp_layers": 1, "hidden_size_per_layer_input": None}, "cannot be combined with block_type 'altup'"),
        ({"swiglu_config.activation_sparsity": 1.0}, "swiglu_config.activation_sparsity=1.0 must be"),
        ({"swiglu_config.activation_sparsity": 0.5, "gated_mlp": False}, "gated_mlp=True"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises((StrictDataclassError, ValueError), match=says):
        config(**fields)
