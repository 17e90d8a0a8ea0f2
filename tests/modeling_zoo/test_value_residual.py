"""Values mixed with those of the first layer: the same as doing it by hand behind v_proj of plain attention."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from random_models import randomize
from references_attention import value_residual
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.platform_pipeline import refuse_uncut
from modeling_zoo.platform_vllm import unsupported_by_vllm

WORD = "value_residual"
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "chunked_attention"], "sliding_window": 4,
           "attention_chunk_size": 5}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_attention_type": "delta_net",
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 10, "linear_value_head_dim": 12,
}  # fmt: skip
# fields -> the layer whose values are mixed in, the layers that mix.
CASES = {
    "learned": ({}, 0, [1, 2]),
    "fixed": ({WORD: [0.3, 0.9], "attention_value_scale": 0.7, "v_head_dim": 10}, 0, [1, 2]),
    "windows": ({**WINDOWS, "attention_bias": True, "qk_norm": "rms_norm"}, 0, [1, 2]),
    "some layers": ({"attention_type": [WORD, "grouped_query", WORD]}, 0, [2]),
    "behind others": ({"attention_type": ["latent", WORD, WORD], "kv_lora_rank": 20, "qk_nope_head_dim": 8,
                       "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 6}, 1, [2]),
    "behind a recurrence": (LINEAR, 1, [2]),
    "each its own": ({"per_layer_config": {1: {WORD: [0.2, 1.1]}, 2: {WORD: [0.6, -0.4]}}}, 0, [1, 2]),
}  # fmt: skip


def build(**fields):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, "attention_type": WORD, **fields}))
    randomize(model)
    return model.eval()


def plain_fields(fields):
    """The same model without value residual."""
    named = fields.get("attention_type", WORD)
    plain = "grouped_query" if named == WORD else [name.replace(WORD, "grouped_query") for name in named]
    return {name: value for name, value in fields.items() if name not in (WORD, "per_layer_config")} | {
        "attention_type": plain
    }


def by_hand(model, fields, source, mixing):
    """Plain attention with the weights of `model`, its values mixed behind v_proj."""
    reference = build(**plain_fields(fields))
    reference.load_state_dict(model.state_dict(), strict=False)
    seen = []
    layers = reference.model.layers
    layers[source].self_attn.v_proj.register_forward_hook(lambda module, given, value: seen.append(value))
    for index in mixing:
        weights = (
            model.config.per_layer_config[index].value_residual or model.model.layers[index].self_attn.value_weights
        )

        def mix(module, given, value, weights=weights):
            return value_residual(value, seen[-1], weights)

        layers[index].self_attn.v_proj.register_forward_hook(mix)
    return reference


@pytest.mark.parametrize("case", CASES)
def test_equals_values_mixed_by_hand(case):
    fields, source, mixing = CASES[case]
    model, tokens = build(**fields), torch.randint(3, 101, (2, TOKENS))
    reference = by_hand(model, fields, source, mixing)
    for one in (model, reference):
        one(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=1e-5, atol=1e-5)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if "value_weights" not in name:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5, msg=name)
    learned = [name for name, _ in model.named_parameters() if "value_weights" in name]
    fixed = WORD in fields or "per_layer_config" in fields
    assert learned == ([] if fixed else [f"model.layers.{i}.self_attn.value_weights" for i in mixing])


@pytest.mark.parametrize(
    "case", ["windows", "some layers", *(pytest.param(c, marks=pytest.mark.long) for c in ("fixed", "behind others"))]
)
def test_every_way_to_run_gives_the_same(case, tmp_path):
    model, tokens = build(**CASES[case][0]), torch.randint(3, 101, (2, TOKENS))
    with torch.no_grad():
        expected = model(tokens).logits
        check_cached(model, tokens, expected)
        check_padded(model, tokens, expected)
        check_packed(model, tokens, expected)
        check_generated(model, tokens)
        check_saved(model, tokens, expected, tmp_path, remote=case != "windows")
    check_backward(model, tokens)


def test_checkpointing_changes_no_gradient_and_the_form_that_would_is_refused():
    model, tokens = build().train(), torch.randint(3, 101, (2, TOKENS))
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="needs use_reentrant=False"):
        model(tokens, labels=tokens, use_cache=False).loss.backward()


def test_tools_know_it():
    model = ZooForCausalLM(ZooConfig(**SIZES, attention_type=WORD))
    assert model.model.layers[2].self_attn.value_weights.tolist() == [0.5, 0.5]
    report = measure(model.config)
    assert [layer["mixer"] for layer in report["layers"]] == ["value_residual 6/2 x 12"] * 3
    assert report["parameters"] == model.num_parameters()
    assert unsupported_by_vllm(model.config) == ["attention_type"]
    assert not [name for name in model.config.base_model_tp_plan if "self_attn" in name]
    with pytest.raises(ValueError, match="pp_size cuts between layers, which attention_type=value_residual"):
        refuse_uncut(model.config)
    first = ZooConfig(**{**SIZES, "num_hidden_layers": 1}, attention_type=WORD)
    assert not [name for name, _ in ZooForCausalLM(first).named_parameters() if "value_weights" in name]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_mtp_layers": 1}, "num_mtp_layers=1 cannot be combined with attention_type 'value_residual'"),
        ({"num_kv_shared_layers": 1}, "needs attention_type='grouped_query'"),
        ({"position_embedding_type": "transformer_xl"}, "'grouped_query'"),
        ({"per_layer_config": {1: {"v_head_dim": 10}}}, r"are \[2, 12\] there and \[2, 10\] in layer 1"),
        ({"per_layer_config": {0: {WORD: [1, 2]}}}, "does nothing in layer 0"),
        ({"attention_type": "grouped_query", WORD: [1, 2]}, "only means something with a layer that mixes"),
        ({WORD: [1, 2, 3]}, "value_residual="),
        ({**LINEAR, "layer_types": ["hybrid", "full_attention", "hybrid"]}, "needs attention_type='grouped_query'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises((StrictDataclassError, ValueError), match=says):
        ZooConfig(**{**SIZES, "attention_type": WORD, **fields})
