"""Step 3.5 and 3.7 Flash: bounds of one layer for experts, shared experts and dense MLPs; config files as published."""

import json

import pytest
from checkpoint_checks import assert_same_tensors, tensors_of
from test_all_wrappers import QUIET, assert_equal_on_text
from tiny_wrappers import tiny_wrapper

from conversion import convert, export_config, import_config, load

WINDOWS = {"layer_types": ["sliding_attention"] * 3}
TABLE = {"rope_type": "default", "rope_theta": 50.0}
VARIANTS = {
    "bounds of one kind": {"swiglu_limits": [0.0, 0.3, 0.0], "swiglu_limits_shared": [0.0, 0.3, 0.0]},
    "biases, another scale, tied": {
        "swiglu_limits": [None, None, 0.2], "swiglu_limits_shared": None, "attention_bias": True, "mlp_bias": True,
        "query_pre_attn_scalar": 7, "tie_word_embeddings": True,
    },
    "all slide": WINDOWS | {"rope_parameters": {"sliding_attention": TABLE}, "mlp_layer_types": ["sparse"] * 3},
}  # fmt: skip


@pytest.mark.parametrize("case", VARIANTS)
def test_there_and_back(case, tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = tiny_wrapper("step3p7", text=VARIANTS[case])
    theirs.save_pretrained(source)
    convert(source, zoo, **QUIET)
    assert_equal_on_text(load(zoo).eval(), theirs)
    convert(zoo, back, to="step3p7", **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_a_config_in_the_spellings_of_published_files():
    """45 layers with lists of 48: three predict further tokens."""
    published = {
        "model_type": "step3p5", "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
        "vocab_size": 128896, "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128,
        "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280, "share_expert_dim": 1280,
        "moe_layers_enum": ",".join(map(str, range(3, 45))), "moe_router_scaling_factor": 3.0, "sliding_window": 512,
        "rope_theta": [5e6, 1e4, 1e4, 1e4] * 12, "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 12,
        "attention_other_setting": {"attention_type": "sliding_attention", "num_attention_heads": 96},
        "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 12, "num_nextn_predict_layers": 3,
        "swiglu_limits": [0.0] * 43 + [7.0, 7.0] + [0.0] * 3, "swiglu_limits_shared": [0.0] * 44 + [16.0] + [0.0] * 3,
    }  # fmt: skip
    ours = import_config(published)
    layers = list(ours.per_layer_config)
    heads = [64 if kind == "full_attention" else 96 for kind in ours.layer_types]
    assert [layer.num_attention_heads for layer in layers] == heads and len(heads) == 45
    assert [layer.swiglu_limit for layer in layers[42:]] == [None, 7.0, 7.0]
    assert [layer.swiglu_config["shared_limit"] for layer in layers[42:]] == [None, 0, 16.0]
    assert ours.mlp_layer_types == ["dense"] * 3 + ["sparse"] * 42
    assert ours.rope_parameters["full_attention"]["partial_rotary_factor"] == 0.5
    assert export_config(ours, "step3p5") == published
