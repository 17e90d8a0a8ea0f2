"""Grouped-query attention and all that stands around it, against the slow reference and on every backend that may run
it."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from references_attention import attention_row
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_zoo import ZooConfig
from modeling_zoo import ZooModel
from modeling_zoo.ops_rotary import apply_rotary

# Small, odd and mutually different; the inner width of attention (72) is not the hidden size.
BASE = {
    "vocab_size": 31, "hidden_size": 20, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
CHUNKED = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 4}
TEMPERATURE = {
    "attn_temperature.scale": 0.7,
    "attn_temperature.floor_scale": 3,
    "attn_temperature.offset": 1,
    "no_rope_layers": [1, 0],
}
RMS, LAYER = {"qk_norm": "rms_norm", "qk_norm_config.eps": 1e-3}, {"qk_norm": "layer_norm", "qk_norm_config.eps": 1e-3}
AFTER = {"qk_norm_config.position": "after_rope"}
# Positions other than rotations take the place of rope_parameters.
NO_ROPE = {"rope_parameters": None}


def sparse(pattern):
    return {"sparse_attention_pattern": [pattern, "none"], "sparse_attention_stride": 3}


MFA = "multi_matrix_factorization"
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}
CASES = {
    "grouped": {},
    "multi_head": {"num_key_value_heads": 6},
    "multi_query": {"num_key_value_heads": 1},
    "derived_head_dim": {"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 5},
    "all_biases": {"attention_bias": True},
    "input_biases": {"attention_bias": True, "attention_out_bias": False},
    "output_bias": {"attention_out_bias": True},
    "interleaved": {"rope_interleave": True},
    "partial": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "partial_interleaved": {
        "rope_interleave": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75},
    },
    "lifted_rotation": {"precision.rope": "float32_qk"},
    "float32_angles": {"precision.rope": "float32_trig"},
    "no_rope_layer": {"no_rope_layers": [0, 1]},
    "alibi": NO_ROPE | {"position_embedding_type": "alibi"},
    "scaled_alibi": NO_ROPE | {"position_embedding_type": "alibi", "position_config.alibi_scaled": True},
    "relative": NO_ROPE
    | {
        "position_embedding_type": "relative", "relative_attention_num_buckets": 6,
        "relative_attention_max_distance": 9,
    },
    "none": NO_ROPE | {"position_embedding_type": "none"},
    "norm_shared": RMS,
    "norm_shared_after": RMS | AFTER,
    "norm_shared_bias": LAYER | {"qk_norm_config.bias": True},
    "norm_shared_bias_after": LAYER | {"qk_norm_config.bias": True} | AFTER,
    "norm_per_head": LAYER | {"qk_norm_config.weight": "per_head"},
    "norm_per_head_after": LAYER | {"qk_norm_config.weight": "per_head"} | AFTER,
    "norm_per_head_bias": LAYER | {"qk_norm_config.weight": "per_head", "qk_norm_config.bias": True},
    "rms_norm_per_head": RMS | {"qk_norm_config.weight": "per_head"},
    "norm_full": RMS | {"qk_norm_config.scope": "full"},
    "norm_full_after": RMS | {"qk_norm_config.scope": "full"} | AFTER,
    "layer_norm_full": LAYER | {"qk_norm_config.scope": "full", "qk_norm_config.bias": True},
    "norm_without_weight": RMS | {"qk_norm_config.weight": "none"},
    "norm_without_weight_after": RMS | {"qk_norm_config.weight": "none"} | AFTER,
    "full_norm_without_weight": LAYER | {"qk_norm_config.scope": "full", "qk_norm_config.weight": "none"},
    "norm_with_unit_offset": RMS | {"norm_unit_offset": True},
    "other_norm_without_offset": LAYER | {"norm_unit_offset": True},
    "soft_cap": {"attn_logit_softcapping": 0.8},
    "sinks": {"attention_sinks": "all"},
    "sinks_on_sliding": SLIDING | {"attention_sinks": "sliding_attention"},
    "capped_sinks": SLIDING | {"attention_sinks": "all", "attn_logit_softcapping": 1.1},
    "gate_beside_query": {"attn_output_gate": "query"},
    "gate_beside_query_norm": RMS | {"attn_output_gate": "query", "attention_bias": True},
    "gate_elementwise": {"attn_output_gate": "elementwise"},
    "gate_headwise": {"attn_output_gate": "headwise"},
    "gate_elementwise_softplus": {"attn_output_gate": "elementwise_softplus", "v_head_dim": 6},
    "gate_headwise_softplus": {"attn_output_gate": "headwise_softplus"},
    "clip": {"clip_qkv": 0.6},
    "clip_beside_gate": {"clip_qkv": 0.6, "attn_output_gate": "query"},
    "clip_after_norm": RMS | {"clip_qkv": 0.6, "clip_qkv_position": "after_norm"},
    "norm_where_it_turns": RMS | AFTER | {"qk_norm_config.layers": "rope", "no_rope_layers": [1, 0]},
    "narrow_values": {"v_head_dim": 6, "attention_value_scale": 0.7, "attention_bias": True},
    "wide_values": {"v_head_dim": 10, "attention_value_scale": 1.3, "attention_sinks": "all"},
    "narrow_values_gate_beside_query": {"v_head_dim": 6, "attn_output_gate": "query"},
    "narrow_values_gate": {"v_head_dim": 6, "attn_output_gate": "elementwise"},
    "multiplier": {"attention_multiplier": 0.11},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "inverse_layer_multiplier": {"scale_attn_by_inverse_layer_idx": True, "attention_multiplier": 2},
    "lifted_scores": {"precision.attention_upcast": True},
    "temperature": TEMPERATURE | {"attn_temperature.layers": "all"},
    "temperature_where_it_turns": TEMPERATURE | {"attn_temperature.layers": "rope"},
    "temperature_where_not": TEMPERATURE | {"attn_temperature.layers": "no_rope"},
    "sliding": SLIDING,
    "chunked": CHUNKED,
    "strided": sparse("strided"),
    "fixed": sparse("fixed"),
    "banded": sparse("banded"),
    "both_ways": {"use_bidirectional_attention": True},
    "both_ways_relative": NO_ROPE | {"position_embedding_type": "relative", "use_bidirectional_attention": True},
    "differential": {"attention_type": "differential"},
    "differential_everything": SLIDING | RMS
    | {
        "attention_type": "differential", "attention_sinks": "all", "attn_output_gate": "query", "v_head_dim": 6,
        "attn_logit_softcapping": 2.0, "attention_bias": True,
    },
    "differential_alibi": NO_ROPE | {"attention_type": "differential", "position_embedding_type": "alibi"},
    "forgetting": {"attention_type": "forgetting"},
    "forgetting_chunks": CHUNKED | {"attention_type": "forgetting", "num_key_value_heads": 6},
    "forgetting_alibi": NO_ROPE | SLIDING | {"attention_type": "forgetting", "position_embedding_type": "alibi"},
    "forgetting_everything": SLIDING | RMS
    | {
        "attention_type": "forgetting", "attention_sinks": "all", "attn_output_gate": "query", "v_head_dim": 6,
        "attn_logit_softcapping": 2.0, "attention_bias": True,
    },
    "path": NO_ROPE | {"attention_type": "path", "position_embedding_type": "none"},
    "path_chunks": CHUNKED | {"attention_type": "path", "num_key_value_heads": 6},
    "path_alibi": NO_ROPE | SLIDING | {"attention_type": "path", "position_embedding_type": "alibi"},
    "path_everything": SLIDING | RMS
    | {
        "attention_type": "path", "attention_sinks": "all", "attn_output_gate": "query", "v_head_dim": 6,
        "attn_logit_softcapping": 2.0, "attention_bias": True, "precision.attention_upcast": True,
    },
    "stick_breaking": NO_ROPE | {"attention_type": "stick_breaking", "position_embedding_type": "none"},
    "stick_breaking_strided": sparse("strided") | {"attention_type": "stick_breaking"},
    "stick_breaking_everything": SLIDING | RMS
    | {
        "attention_type": "stick_breaking", "attn_output_gate": "headwise", "v_head_dim": 6, "attention_bias": True,
        "attn_logit_softcapping": 2.0, "precision.attention_upcast": True,
    },
    "mfa": {"attention_type": MFA, "num_key_value_heads": 1},
    "mfa_everything": SLIDING | RMS
    | {
        "attention_type": MFA, "attention_sinks": "all", "attn_output_gate": "query", "v_head_dim": 6,
        "attn_logit_softcapping": 2.0, "attention_bias": True, "attention_factors.query_rank": 11,
        "attention_factors.query_norm": False, "clip_qkv": 1.5,
    },
    "tensor_product": {"attention_type": "tensor_product"},
    "tensor_product_everything": SLIDING | TEMPERATURE
    | {
        "attention_type": "tensor_product", "attention_sinks": "all", "attn_output_gate": "elementwise",
        "v_head_dim": 6, "attn_logit_softcapping": 2.0, "attention_bias": True, "attn_temperature.layers": "all",
        "attention_factors": {"query_rank": 3, "key_rank": 4, "value_rank": 1},
    },
    "grouped_tied": HALF | {"attention_type": "grouped_tied"},
    "grouped_tied_still": HALF | {"attention_type": "grouped_tied", "no_rope_layers": [0, 1]},
    "grouped_tied_alibi": NO_ROPE | {"attention_type": "grouped_tied", "position_embedding_type": "alibi"},
    "grouped_tied_everything": SLIDING | HALF | TEMPERATURE
    | {
        "attention_type": "grouped_tied", "attention_sinks": "all", "attn_output_gate": "query", "v_head_dim": 10,
        "attn_logit_softcapping": 2.0, "attention_bias": True, "attn_temperature.layers": "all",
    },
    "everything": SLIDING | RMS | TEMPERATURE
    | {
        "attn_temperature.layers": "all", "attention_sinks": "all", "attn_logit_softcapping": 2.0, "clip_qkv": 1.5,
        "attn_output_gate": "headwise", "attention_bias": True, "attention_multiplier": 0.3,
        "scale_attn_by_inverse_layer_idx": True, "precision.attention_upcast": True,
    },
}  # fmt: skip
PADDED, LENGTH = 3, 10


def make(changes, backend="eager"):
    config = ZooConfig(**BASE | changes, attn_implementation=backend)
    torch.manual_seed(0)
    model = ZooModel(config).eval()
    randomize(model)
    return model


def run(model, calls=None):
    """The last hidden states of two rows, the first one left-padded; what went into and out of each attention."""
    calls = [] if calls is None else calls

    def record(module, args, kwargs, output):
        calls.append((module, (args or (kwargs["hidden_states"],))[0], output[0]))

    hooks = [layer.self_attn.register_forward_hook(record, with_kwargs=True) for layer in model.layers]
    tokens = torch.randint(0, 31, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[0, :PADDED] = 0
    with torch.no_grad():
        hidden = model(tokens, attention_mask=mask, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return torch.cat((hidden[0, PADDED:], hidden[1])), calls


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_reference(case):
    model = make(CASES[case])
    _, calls = run(model)
    assert [module.layer_idx for module, _, _ in calls] == [0, 1]
    table = getattr(model.position_bias, "relative_attention_bias", None)
    for module, given, found in calls:
        parameters = module.state_dict()
        for row, first in enumerate((PADDED, 0)):
            expected = attention_row(
                parameters, given[row], model.config, module.layer_idx, first, table and table.weight.detach()
            )[first:]
            error = (found[row, first:] - expected).abs().max() / expected.abs().max()
            assert error < 1e-5, f"layer {module.layer_idx}, row {row}: {error:.1e}"


# What makes scores that the fused kernel of torch does not have.
CAPPED = [case for case, flags in CASES.items() if flags.keys() & {"attn_logit_softcapping", "attention_sinks"}]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in CASES if case not in CAPPED])
def test_sdpa_equals_eager(case):
    model = make(CASES[case])
    expected, _ = run(model)
    model.set_attn_implementation("sdpa")
    found, _ = run(model)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("case", CAPPED)
def test_sdpa_is_refused_where_it_would_drop_something(case):
    with pytest.raises(ValueError, match=r"attn_implementation='sdpa' cannot compute .*(softcapping|sinks)"):
        make(CASES[case], "sdpa")


# Each takes up to a minute to compile on a CPU. Sinks need a CUDA device there.
FLEX = ("grouped", "soft_cap", "sliding", "chunked", "strided", "alibi", "relative", "both_ways")


@pytest.mark.long
@pytest.mark.parametrize("case", FLEX)
def test_flex_equals_eager(case):
    model = make(CASES[case])
    expected, _ = run(model)
    model.set_attn_implementation("flex_attention")
    found, _ = run(model)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.long
def test_a_bias_is_whole_where_flex_indexes_it(monkeypatch):
    """The kernel reads bias[batch, head, query, key] without a check: a broadcast dimension would be read beyond."""
    seen = []

    def read(module, query, key, value, attention_mask, position_bias=None, **kwargs):
        seen.append((position_bias.shape, (query.shape[0], query.shape[1], query.shape[2], key.shape[2])))
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flex_attention", read)
    for case in ("alibi", "relative"):
        model = make(CASES[case])
        model.set_attn_implementation("flex_attention")
        run(model)
    assert len(seen) == 4
    assert all(tuple(shape) == wanted for shape, wanted in seen)


def test_rotation_by_halves_is_rotation_by_pairs_of_permuted_channels():
    """The identity that every converter of checkpoints rests on."""
    halves, pairs = torch.randn(1, 5, 3, 12), torch.empty(1, 5, 3, 12)
    pairs[..., 0::2], pairs[..., 1::2] = halves.chunk(2, dim=-1)
    angles = torch.randn(1, 5, 6)
    by_half = apply_rotary(halves, [torch.cat((f, f), -1) for f in (angles.cos(), angles.sin())])
    by_pair = apply_rotary(pairs, [f.repeat_interleave(2, -1) for f in (angles.cos(), angles.sin())], interleave=True)
    torch.testing.assert_close(torch.cat((by_pair[..., 0::2], by_pair[..., 1::2]), -1), by_half)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"clip_qkv_position": "after_norm"}, "clip_qkv_position='after_norm' only means something with clip_qkv"),
        ({"clip_qkv": 1.0, "clip_qkv_position": "after_norm"}, "clip_qkv_position='after_norm' needs qk_norm"),
        ({"clip_qkv": 1.0, "clip_qkv_position": "later"}, "clip_qkv_position='later' is not one of"),
        ({"qk_norm_config.layers": "rope"}, "qk_norm_config.layers='rope' only means something with qk_norm"),
        (RMS | {"qk_norm_config.layers": "some"}, "qk_norm_config.layers='some' is not one of"),
        (
            NO_ROPE | RMS | {"position_embedding_type": "none", "qk_norm_config.layers": "rope"},
            "needs position_embedding_type",
        ),
        ({"v_head_dim": 0}, "v_head_dim=0 must be greater than 0"),
        ({"attention_value_scale": 0}, "attention_value_scale=0 would erase what it multiplies"),
        ({"attention_type": "latent", "attention_value_scale": 0.7}, "attention_value_scale=0.7 only means something"),
    ],
)
def test_what_would_do_nothing_is_refused_by_name(changes, match):
    with pytest.raises(StrictDataclassError, match=match):
        ZooConfig(**BASE | changes)
