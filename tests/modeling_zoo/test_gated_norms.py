"""Norms with gates: the same as A.X K2's own class, and in every way a model is run."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from peft import LoraConfig, get_peft_model
from random_models import randomize
from transformers import AXK2Config
from transformers.models.axk2.modeling_axk2 import AXK2GatedRMSNorm
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.block_gated_norm import GatedNorm
from modeling_zoo.norms import RMSNorm
from modeling_zoo.platform_vllm import unsupported_by_vllm

RANK = "block_config.gated_norm_rank"
MIXED = {"block_type": ["gated_attn_norm", "gated_norm", "pre_norm"], RANK: 5}


def build(**fields):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **MIXED, **fields}))
    randomize(model)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_original_and_its_gradients(dtype):
    theirs = AXK2GatedRMSNorm(AXK2Config(hidden_size=48, gated_norm_rank=5, rms_norm_eps=1e-3))
    config = ZooConfig(**{**SIZES, "hidden_size": 48}, block_type="gated_norm", norm_eps=1e-3, **{RANK: 5})
    ours = GatedNorm(config, RMSNorm(48, 1e-3, cast="cast_then_scale"))
    randomize(theirs)
    names = {"norm.weight": "norm.weight", "mlp.fc1.weight": "a_proj.weight", "mlp.fc2.weight": "b_proj.weight"}
    ours.load_state_dict({names[name]: x for name, x in theirs.state_dict().items()})
    x, upstream, found = torch.randn(2, 7, 48, dtype=dtype), torch.randn(2, 7, 48, dtype=dtype), []
    for module in (theirs.to(dtype), ours.to(dtype)):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        (output * upstream).sum().backward()
        found.append([output, leaf.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
    order = [0, 1, *(2 + sorted(names.values()).index(names[name]) for name in sorted(names))]
    for wanted, place in zip(found[0], order, strict=True):
        torch.testing.assert_close(found[1][place], wanted)


@pytest.mark.parametrize(
    "fields",
    [{}, pytest.param({"norm_type": "layer_norm", "precision.residual_in_fp32": True}, marks=pytest.mark.long)],
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


def test_a_layer_is_gated_where_its_word_says_so():
    model = build()
    gated = [(isinstance(x.attn_norm, GatedNorm), isinstance(x.mlp_norm, GatedNorm)) for x in model.model.layers]
    assert gated == [(True, False), (True, True), (False, False)]
    tokens = torch.randint(3, 101, (1, TOKENS))
    plain = ZooForCausalLM(ZooConfig(**SIZES)).eval()
    tensors = {name.replace("_norm.norm.", "_norm."): x.clone() for name, x in model.state_dict().items()}
    plain.load_state_dict(
        {name: x for name, x in tensors.items() if not name.endswith(("a_proj.weight", "b_proj.weight"))}
    )
    with torch.no_grad():
        before = model(tokens).logits
        # A gate that does not ask its input is a half everywhere.
        for norm in [module for module in model.modules() if isinstance(module, GatedNorm)]:
            norm.b_proj.weight.zero_()
            norm.norm.weight.mul_(2)
        halved = model(tokens).logits
        torch.testing.assert_close(halved, plain(tokens).logits, rtol=1e-5, atol=1e-5)
    assert (before - halved).abs().max() > 0.1 * before.abs().max()


def test_tools_know_them():
    model = build()
    report = measure(model.config)
    assert report["parameters"] == model.num_parameters()
    assert [layer["residual"] for layer in report["layers"]] == [
        "gated_attn_norm rms_norm, gates of 5 channels on the norm",
        "gated_norm rms_norm, gates of 5 channels on the norms",
        "pre_norm rms_norm",
    ]
    assert "block_type" in unsupported_by_vllm(model.config)
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **model.lora_targets(["mlp"])))
    assert any("mlp_norm.a_proj" in name for name in adapted.state_dict() if "lora_A" in name)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block_type": "pre_norm"}, "block_config.gated_norm_rank=5 only means something with a block_type of"),
        ({RANK: 0}, "block_config.gated_norm_rank=0 must be greater than 0"),
        ({"per_layer_config": {1: {RANK: 3}}}, RANK),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises((StrictDataclassError, ValueError), match=says):
        ZooConfig(**{**SIZES, **MIXED, **fields})
