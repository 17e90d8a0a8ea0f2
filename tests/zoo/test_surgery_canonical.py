"""One model in another family's form: factors, offsets, layouts, biases, a head of its own. The table of
test_surgery_exact.py asks every family whether the function stays; here is that the form is the one asked for."""

import json

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens
from typer.testing import CliRunner

from modeling_zoo import ZooForCausalLM
from modeling_zoo.norms import LayerNorm, RMSNorm
from zoo.cli.main import app
from zoo.surgery import operate
from zoo.surgery.operation import TOLERANCE, SurgeryError

GRANITE = {
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.5,
    "logits_scaling": 8.0,
}
FORMS = {
    "factors": GRANITE,
    "offset": {"norm_unit_offset": True},
    "pairs side by side": {"rope_interleave": True},
    "biases": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True, "lm_head_bias": True},
    "head": {"tie_word_embeddings": False},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_and_back(form):
    model, text = stories()
    rows, wanted = text.to_measure(512), FORMS[form]
    new = operate(STORIES, None, wanted).model
    assert {name: getattr(new.config, name) for name in wanted} == wanted
    expected = logits(model, rows)
    assert (logits(new, rows) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    if form in ("biases", "head"):
        with pytest.raises(SurgeryError, match="would be lost"):
            operate(new, None, {name: not value for name, value in wanted.items()})
        return
    again = operate(new, None, {name: getattr(model.config, name) for name in wanted if name != "attention_multiplier"}
                    | ({"attention_multiplier": 8**-0.5} if form == "factors" else {})).model  # fmt: skip
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_all_forms_at_once_and_generation():
    model, text = stories()
    wanted = {name: value for fields in FORMS.values() for name, value in fields.items()}
    new = operate(STORIES, None, wanted).model
    start = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    rows = text.to_measure(512)[:1, :20]
    assert torch.equal(new.generate(rows, **start), model.generate(rows, **start))
    assert isinstance(new, ZooForCausalLM) and set(new.config.surgery["operations"][0]["fields"]) <= set(wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["gemma2", "gptj", "cohere", "qwen3", "gpt2"])
def test_forms_of_other_families(family):
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config)
    wanted = {"residual_multiplier": 0.5, "logits_scaling": 2.0 * config.logits_scaling}
    wanted |= {"rope_interleave": not config.rope_interleave} if config.position_embedding_type == "rope" else {}
    new, before = operate(model, None, wanted).model, logits(model, ids)
    assert (logits(new, ids) - before).abs().max() <= TOLERANCE * before.abs().max()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("qwen3", {"attention_multiplier": 0.5}, "qk_norm makes queries of one size"),
        ("gpt2", {"embedding_multiplier": 2.0}, "positions are added"),
        ("deepseek_v3", {"rope_interleave": False}, "layers of 'latent'"),
        ("llama", {"residual_multiplier": 0}, "more than 0"),
        ("llama", {"tie_word_embeddings": True}, "one would be lost"),
        ("qwen2", {"attention_bias": False}, "would be lost"),
    ],
)
def test_what_no_weight_can_take_is_refused(family, fields, says):
    model = random_model(family_config(family, 0))
    name, value = next(iter(fields.items()))
    if getattr(model.config, name) == value:
        model = random_model(family_config(family, 1))
    with pytest.raises(SurgeryError, match=says):
        operate(model, None, fields)


def untied(family, number=0):
    """(a family's random model with a head of its own, tokens, its logits)."""
    config = family_config(family, number)
    config.tie_word_embeddings = False
    model = random_model(config)
    ids = tokens(config)
    return model, ids, logits(model, ids)


def close(model, ids, expected):
    return (logits(model, ids) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "falcon", "phi", "starcoder2", "stablelm", "gptj", "mpt", "olmo"]
)
def test_a_layer_norm_becomes_an_rms_norm(family):
    model, ids, before = untied(family)
    assert any(isinstance(module, LayerNorm) for module in model.modules())
    new = operate(model, None, {"norm_type": "rms_norm"}).model
    norms = [module for module in new.modules() if isinstance(module, (LayerNorm, RMSNorm))]
    assert norms and all(isinstance(module, RMSNorm) and module.bias is None for module in norms)
    assert close(new, ids, before)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "family", ["llama", "gpt_oss", "deepseek_v32", "qwen3_5_text", "mixtral", "gemma", "jais2", "nemotron_h", "bamba"]
)
def test_a_stream_turns_where_norms_have_no_weights(family):
    model, ids, before = untied(family)
    if model.config.norm_type == "layer_norm":
        model = operate(model, None, {"norm_type": "rms_norm"}).model
    with pytest.raises(SurgeryError, match="norms have weights; --set norm_elementwise_affine=false"):
        operate(model, None, apply="stream_rotation")
    folded = operate(model, None, {"norm_elementwise_affine": False}).model
    assert close(folded, ids, before) and folded.model.norm.weight is None
    for method in ("hadamard", "random"):
        turned = operate(folded, None, apply="stream_rotation", method=method).model
        moved = turned.model.embed_tokens.weight - folded.model.embed_tokens.weight
        assert moved.abs().mean() > 0.1 * folded.model.embed_tokens.weight.abs().mean()
        assert close(turned, ids, before)
    with_weights = operate(turned, None, {"norm_elementwise_affine": True}).model
    assert torch.equal(with_weights.model.norm.weight, torch.ones(model.config.hidden_size))
    assert close(with_weights, ids, before)


@torch.no_grad()
def test_a_rotation_spreads_an_outlier():
    config = family_config("llama", 0)
    config.tie_word_embeddings, config.norm_elementwise_affine = False, False
    model = random_model(config)
    model.model.embed_tokens.weight[:, 3] *= 100
    turned = operate(model, None, apply="stream_rotation").model
    peaks = [
        one.abs().max() / one.square().mean().sqrt() for one in (m.model.embed_tokens.weight for m in (model, turned))
    ]
    assert peaks[0] > 3 * peaks[1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "number"), [("gpt2", 0), ("falcon", 1), ("phi", 0), ("qwen2", 0), ("gemma", 1)])
def test_a_bias_of_values_goes_behind_attention(family, number):
    model = random_model(family_config(family, number))
    ids = tokens(model.config)
    before = logits(model, ids)
    if not model.config.attention_out_bias:
        model = operate(model, None, {"attention_out_bias": True}).model
    new = operate(model, None, apply="value_biases").model
    assert not new.model.layers[0].self_attn.v_proj.bias.any() and model.model.layers[0].self_attn.v_proj.bias.any()
    assert close(new, ids, before)


@pytest.mark.long
def test_a_turned_llama_is_a_llama(tmp_path):
    from transformers import AutoModelForCausalLM

    model, text = stories()
    rows = text.to_measure(512)
    plan = {
        "operations": [
            {"set": {"tie_word_embeddings": False}},
            {"set": {"norm_elementwise_affine": False}},
            {"apply": "stream_rotation", "method": "random"},
            {"set": {"norm_elementwise_affine": True}},
        ],
        "to": "llama",
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    options = [str(STORIES), str(tmp_path / "new"), "--plan", str(tmp_path / "plan.yaml"), "--evaluate", str(TEXT)]
    done = CliRunner().invoke(app, ["surgery", *options])
    assert done.exit_code == 0 and "rotation of the residual stream, layers 0-4: arithmetic" in done.stdout
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert type(new).__name__ == "LlamaForCausalLM" and close(new, rows, logits(model, rows))


@pytest.mark.parametrize(
    ("family", "asked", "says"),
    [
        ("cohere", {"wanted": {"norm_type": "rms_norm"}}, "qk_norm='layer_norm' takes off means"),
        ("bloom", {"wanted": {"norm_type": "rms_norm"}}, "an embedding norm"),
        ("olmo2", {"wanted": {"norm_elementwise_affine": False}}, "block_type='output_norm' does more"),
        ("llama4_text", {"wanted": {"norm_elementwise_affine": False}}, "experts reads something else than a norm"),
        ("falcon_h1", {"wanted": {"norm_elementwise_affine": False}}, "is read by no matrix"),
        ("gpt2", {"apply": "stream_rotation"}, "norm_type='layer_norm' takes off a mean"),
        ("gpt_oss", {"apply": "value_biases"}, "attention_sinks='all' weighs what values give"),
        ("llama", {"apply": "turn"}, "apply='turn' is none of"),
        ("llama", {"apply": "value_biases", "method": "fast"}, "method 'fast' is none of value_biases"),
        ("llama", {"apply": "value_biases", "wanted": {"rope_interleave": True}}, "are two operations"),
    ],
)
def test_where_the_stream_is_more_than_a_sum_is_said(family, asked, says):
    model, _, _ = untied(family)
    with pytest.raises(SurgeryError, match=says):
        operate(model, None, **asked)


def test_tied_tables_are_parted_first():
    with pytest.raises(SurgeryError, match="one table; --set tie_word_embeddings=false parts them"):
        operate(STORIES, None, {"norm_elementwise_affine": False})
    new = operate(STORIES, None, {"norm_elementwise_affine": False, "tie_word_embeddings": False}).model
    model, text = stories()
    rows = text.to_measure(512)
    assert close(new, rows, logits(model, rows))
