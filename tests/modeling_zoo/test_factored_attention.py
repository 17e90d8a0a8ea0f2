"""Attentions of factors and of tied keys, in every way a model is run. Their numbers are compared with slow references
in test_attention.py."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from peft import LoraConfig, get_peft_model
from random_models import randomize
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.flops import flops
from description_zoo.measure import held_bytes, measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_growing import GrowingLayer
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.platform_vllm import unsupported_by_vllm

MFA, TPA, GTA = KINDS = ("multi_matrix_factorization", "tensor_product", "grouped_tied")
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "chunked_attention"], "sliding_window": 4,
           "attention_chunk_size": 5}  # fmt: skip
# Numbers of a token in the cache of a layer: keys and values of two heads of 12; factors of rank 2 over two heads and
# twelve channels; two heads of twelve channels and six that rotate.
KEPT = {MFA: 2 * 24, TPA: 4 * 14, GTA: 24 + 6}
WORDS = {MFA: f"{MFA} 6/2 x 12, q 96", TPA: f"{TPA} 6/2 x 12, q 6, k 2, v 2", GTA: f"{GTA} 6/2 x 12"}
PROJECTIONS = {
    MFA: {"q_a_proj", "q_b_proj", "k_proj", "v_proj", "o_proj"},
    TPA: {f"{name}_{factor}_proj" for name in "qkv" for factor in "ab"} | {"o_proj"},
    GTA: {"q_proj", "kv_proj", "k_rope_proj", "o_proj"},
}


def build(kind, **fields):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **HALF, "attention_type": kind, **fields}))
    randomize(model)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (list(KINDS), WINDOWS),
        *(pytest.param(kind, fields, marks=pytest.mark.long) for kind in KINDS for fields in ({}, WINDOWS)),
        pytest.param(GTA, {"no_rope_layers": [0, 1, 0], "v_head_dim": 13}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_every_way_to_run_gives_the_same(kind, fields, tmp_path):
    model, tokens = build(kind, **fields), torch.randint(3, 101, (2, TOKENS))
    with torch.no_grad():
        expected = model(tokens).logits
        check_cached(model, tokens, expected)
        check_padded(model, tokens, expected)
        check_packed(model, tokens, expected)
        check_generated(model, tokens)
        check_saved(model, tokens, expected, tmp_path, remote=True)
    check_backward(model, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_tools_know_them(kind):
    model = build(kind)
    layers = measure(model.config)["layers"]
    assert [layer["mixer"] for layer in layers] == [WORDS[kind]] * 3
    assert unsupported_by_vllm(model.config) == ["attention_type"]
    assert not [name for name in model.config.base_model_tp_plan if "self_attn" in name]
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **model.lora_targets(["attention"])))
    named = {name.split(".self_attn.")[1].split(".")[0] for name in adapted.state_dict() if "lora_A" in name}
    assert named == PROJECTIONS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_what_the_paper_says(kind):
    model = build(kind)
    assert [layer["cache_bytes_per_token"] for layer in measure(model.config)["layers"]] == [2 * KEPT[kind]] * 3
    cache = upgrade_cache(DynamicCache(config=model.config), model.config, quantized=kind != MFA)
    assert {type(layer) for layer in cache.layers} == {GrowingLayer}
    with torch.no_grad():
        model(torch.randint(3, 101, (1, 7)), past_key_values=cache)
    assert held_bytes([[layer.keys, layer.values] for layer in cache.layers]) == 3 * 4 * 7 * KEPT[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_what_is_counted(kind):
    model, context = build(kind, attn_implementation="eager"), 24
    tokens, cache = torch.randint(3, 101, (1, context)), DynamicCache(config=model.config)
    said = flops(model, context)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False)
    assert counter.get_total_flops() == context * said["prompt"]
    with torch.no_grad():
        model(tokens[:, :-1], past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, -1:], past_key_values=cache)
    assert counter.get_total_flops() == said["decode"]


def test_half_of_a_tied_head_rotates_where_nothing_is_said():
    tables = ZooConfig(**SIZES, attention_type=GTA).rope_parameters
    assert tables == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def test_one_head_of_keys_is_what_matrix_factorization_has():
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    assert ZooConfig(**sizes, attention_type=MFA).num_key_value_heads == 1
    assert ZooConfig(**sizes, attention_type=[MFA, TPA, TPA]).num_key_value_heads == 6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"attention_type": [GTA, TPA, GTA]}, "ties the channels of a key that do not rotate, but all 12"),
        (HALF | {"attention_type": GTA, "v_head_dim": 5}, "takes 6 channels of each key from the values"),
        ({"attention_type": TPA, "qk_norm": "rms_norm"}, "qk_norm='rms_norm' needs keys per head in the cache"),
        (HALF | {"attention_type": GTA, "qk_norm": "rms_norm"}, "attention_type='grouped_tied' does not keep"),
        ({"attention_type": TPA, "attn_output_gate": "query"}, "use 'elementwise'"),
        ({"attention_type": TPA, "clip_qkv": 1.0}, "clip_qkv=1.0 only means something with an attention_type of"),
        (HALF | {"attention_type": GTA, "attention_k_eq_v": True}, "attention_k_eq_v=True needs"),
        (
            {"attention_factors.key_rank": 3},
            "attention_factors.key_rank=3 only means something with attention_type='te",
        ),
        ({"attention_type": TPA, "attention_factors.query_norm": True}, "with attention_type='multi_matrix_factoriz"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises(StrictDataclassError, match=says):
        ZooConfig(**{**SIZES, **fields})
