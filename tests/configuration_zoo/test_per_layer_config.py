"""Layers that differ in a number: every field that may differ works and is exact, every other one is refused."""

import json
from copy import deepcopy

import pytest
import torch
from combinations import SIZES as COMMON
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from samples import only
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described
from configuration_zoo.fields_per_layer import PER_LAYER_FIELDS
from description_zoo.measure import layer_runs, measure
from modeling_zoo import ZooForCausalLM

FULL, SLIDING, CHUNKED, INDEXED = "full_attention", "sliding_attention", "chunked_attention", "indexed_attention"
SIZES = {**COMMON, "num_hidden_layers": 2}
ALIKE = {"layer_types": [FULL, FULL]}
LATENT = {
    "attention_type": "latent", "kv_lora_rank": 20, "q_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
    "v_head_dim": 14,
}  # fmt: skip
INDEXER = {**LATENT, "layer_types": [INDEXED] * 2, "index_topk": 4, "index_n_heads": 5, "index_head_dim": 8}
BLOCKS = {
    "layer_types": [INDEXED] * 2,
    "index_topk": 6,
    "index_n_heads": 1,
    "index_head_dim": 8,
    "indexer.block_size": 2,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_layer_types": ["sparse"] * 2}
HEADS = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 10, "linear_value_head_dim": 12,
}  # fmt: skip
TEMPERATURE = {"attn_temperature.layers": "all", "attn_temperature.scale": 0.3, "attn_temperature.floor_scale": 3}
QK = {"qk_norm": "rms_norm"}
GROUPS = {**EXPERTS, "n_group": 3, "topk_group": 2}


def linear(name, **more):
    return {"layer_types": ["linear_attention"] * 2, "linear_attention_type": name, **HEADS, **more}


SHARED = {
    **linear("gated_delta_net"), "layer_types": ["hybrid", "hybrid"], "block_type": "shared_block", "num_mem_blocks": 1,
    "shared_attention_adapter_rank": 3, "shared_mlp_adapter_rank": 3,
}  # fmt: skip
PLAIN = {}
# What the columns of `zoo inspect` are made of.
TEXTS = ("mixer", "context", "positions", "features", "residual", "mlp", "differs")
# field -> (flags of the whole model, what layer 1 has of its own).
MFA = "multi_matrix_factorization"
CASES = {
    "norm_type": (PLAIN, {"norm_type": "layer_norm"}),
    "norm_eps": (PLAIN, {"norm_eps": 0.1}),
    "norm_elementwise_affine": (PLAIN, {"norm_elementwise_affine": False}),
    "norm_bias": ({"norm_type": "layer_norm"}, {"norm_bias": False}),
    "norm_unit_offset": (PLAIN, {"norm_unit_offset": True}),
    "precision.norm": (PLAIN, {"precision.norm": "scale_then_cast"}),
    "residual_multiplier": (PLAIN, {"residual_multiplier": 0.7}),
    "residual_dropout": (PLAIN, {"residual_dropout": 0.2}),
    "precision.parallel_sum_order": ({"block_type": "parallel"}, {"precision.parallel_sum_order": "branches_first"}),
    "num_attention_heads": (PLAIN, {"num_attention_heads": 4}),
    "num_key_value_heads": (PLAIN, {"num_key_value_heads": 3}),
    "head_dim": (PLAIN, {"head_dim": 8}),
    "v_head_dim": (PLAIN, {"v_head_dim": 10}),
    "attention_bias": (PLAIN, {"attention_bias": True}),
    "attention_out_bias": (PLAIN, {"attention_out_bias": True}),
    "attention_multiplier": (PLAIN, {"attention_multiplier": 0.1}),
    "scale_attn_by_inverse_layer_idx": (PLAIN, {"scale_attn_by_inverse_layer_idx": True}),
    "precision.attention_upcast": (PLAIN, {"precision.attention_upcast": True}),
    "attention_dropout": (PLAIN, {"attention_dropout": 0.2}),
    "attn_logit_softcapping": (PLAIN, {"attn_logit_softcapping": 2.0}),
    "attention_sinks": (PLAIN, {"attention_sinks": "all"}),
    "attn_output_gate": (PLAIN, {"attn_output_gate": "headwise"}),
    "attn_temperature.layers": (
        {**TEMPERATURE, "attn_temperature.layers": "no_rope", "no_rope_layers": [0, 1]},
        {"attn_temperature.layers": "all"},
    ),
    "attn_temperature.scale": (TEMPERATURE, {"attn_temperature.scale": 0.9}),
    "attn_temperature.floor_scale": (TEMPERATURE, {"attn_temperature.floor_scale": 2}),
    "attn_temperature.offset": (TEMPERATURE, {"attn_temperature.offset": 2}),
    "residual_factors.full_attn_alpha": ({"block_type": "post_norm"}, {"residual_factors.full_attn_alpha": 1.3}),
    "residual_factors.full_attn_beta": ({"block_type": "post_norm"}, {"residual_factors.full_attn_beta": 1.3}),
    "residual_factors.mlp_alpha": ({"block_type": "post_norm"}, {"residual_factors.mlp_alpha": 1.3}),
    "residual_factors.mlp_beta": ({"block_type": "post_norm"}, {"residual_factors.mlp_beta": 1.3}),
    "residual_factors.linear_attn_alpha": (
        linear("delta_net", block_type="post_norm"), {"residual_factors.linear_attn_alpha": 1.3},
    ),
    "residual_factors.linear_attn_beta": (
        linear("delta_net", block_type="post_norm"), {"residual_factors.linear_attn_beta": 1.3},
    ),
    "clip_qkv": (PLAIN, {"clip_qkv": 0.4}),
    "clip_qkv_position": ({**QK, "clip_qkv": 0.4}, {"clip_qkv_position": "after_norm"}),
    "qk_norm": (PLAIN, {"qk_norm": "layer_norm"}),
    "qk_norm_config.scope": (QK, {"qk_norm_config.scope": "full"}),
    "qk_norm_config.weight": (QK, {"qk_norm_config.weight": "per_head"}),
    "qk_norm_config.bias": ({"qk_norm": "layer_norm"}, {"qk_norm_config.bias": True}),
    "qk_norm_config.position": (QK, {"qk_norm_config.position": "after_rope"}),
    "qk_norm_config.layers": ({**QK, "no_rope_layers": [1, 0]}, {"qk_norm_config.layers": "rope"}),
    "qk_norm_config.eps": (QK, {"qk_norm_config.eps": 0.1}),
    "attention_value_scale": (PLAIN, {"attention_value_scale": 0.6}),
    "mup_multipliers.key": (PLAIN, {"mup_multipliers.key": 0.6}),
    "value_norm": (PLAIN, {"value_norm": True}),
    "attention_k_eq_v": (PLAIN, {"attention_k_eq_v": True}),
    "value_residual": ({"attention_type": "value_residual"}, {"value_residual": [0.3, 0.9]}),
    "attention_factors.query_rank": ({"attention_type": MFA}, {"attention_factors.query_rank": 13}),
    "attention_factors.query_norm": ({"attention_type": MFA}, {"attention_factors.query_norm": False}),
    "attention_factors.key_rank": ({"attention_type": "tensor_product"}, {"attention_factors.key_rank": 3}),
    "attention_factors.value_rank": ({"attention_type": "tensor_product"}, {"attention_factors.value_rank": 3}),
    "kv_lora_rank": (LATENT, {"kv_lora_rank": 13}),
    "q_lora_rank": (LATENT, {"q_lora_rank": None}),
    "qk_nope_head_dim": (LATENT, {"qk_nope_head_dim": 7}),
    "qk_rope_head_dim": (LATENT, {"qk_rope_head_dim": 4}),
    "mla_config.norm_eps": (LATENT, {"mla_config.norm_eps": 0.1}),
    "mla_config.scale_q_lora": (LATENT, {"mla_config.scale_q_lora": True}),
    "mla_config.scale_kv_lora": (LATENT, {"mla_config.scale_kv_lora": True}),
    "mla_config.scale_by_mscale": (
        {**LATENT, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "mscale_all_dim": 1.0,
                                       "original_max_position_embeddings": 16}},
        {"mla_config.scale_by_mscale": False},
    ),
    "mla_config.norm": (LATENT, {"mla_config.norm": False}),
    "mla_config.query_bias": (LATENT, {"mla_config.query_bias": True}),
    "mla_config.raw_query_latent": (LATENT, {"mla_config.raw_query_latent": True}),
    "mla_config.rope_key_norm": (LATENT, {"mla_config.rope_key_norm": True}),
    "mla_config.rope_heads": (LATENT, {"mla_config.rope_heads": 3}),
    "index_topk": (INDEXER, {"index_topk": 2}),
    "index_n_heads": (INDEXER, {"index_n_heads": 3}),
    "index_head_dim": (INDEXER, {"index_head_dim": 7}),
    "indexer.norm_eps": (INDEXER, {"indexer.norm_eps": 1.0}),
    "indexer.block_size": (BLOCKS, {"indexer.block_size": 3}),
    "indexer.local_blocks": (BLOCKS, {"indexer.local_blocks": 3}),
    "indexer.rope_interleave": (INDEXER, {"indexer.rope_interleave": True}),
    "sliding_window": ({"layer_types": [SLIDING] * 2, "sliding_window": 3}, {"sliding_window": 6}),
    "attention_chunk_size": ({"layer_types": [CHUNKED] * 2, "attention_chunk_size": 5}, {"attention_chunk_size": 3}),
    "sparse_attention_stride": (
        {"sparse_attention_pattern": "strided", "sparse_attention_stride": 3}, {"sparse_attention_stride": 4},
    ),
    "rope_parameters": (PLAIN, {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "rope_interleave": (PLAIN, {"rope_interleave": True}),
    "precision.rope": (PLAIN, {"precision.rope": "float32_trig"}),
    "linear_num_key_heads": (linear("gated_delta_net"), {"linear_num_key_heads": 4}),
    "linear_num_value_heads": (linear("gated_delta_net"), {"linear_num_value_heads": 6}),
    "linear_key_head_dim": (linear("gated_delta_net"), {"linear_key_head_dim": 7}),
    "linear_value_head_dim": (linear("gated_delta_net"), {"linear_value_head_dim": 7}),
    "linear_attn_config.bias": (linear("gated_delta_net"), {"linear_attn_config.bias": True}),
    "linear_conv_kernel_dim": (linear("gated_delta_net"), {"linear_conv_kernel_dim": 2}),
    "linear_attn_config.conv_bias": (linear("gated_delta_net"), {"linear_attn_config.conv_bias": True}),
    "linear_attn_config.act": (linear("gated_delta_net"), {"linear_attn_config.act": "none"}),
    "linear_attn_config.qk_norm": (
        linear("delta_net"), {"linear_attn_config.qk_norm": "none", "linear_attn_config.multiplier": 0.05},
    ),
    "linear_attn_config.feature_map": (linear("linear_attention"), {"linear_attn_config.feature_map": "relu"}),
    "linear_attn_config.multiplier": (linear("linear_attention"), {"linear_attn_config.multiplier": 0.2}),
    "linear_attn_config.decay": (
        linear("gated_delta_net"),
        {"linear_attn_config.decay": "bounded_sigmoid", "linear_attn_config.lower_bound": -3.0},
    ),
    "linear_attn_config.decay_granularity": (
        linear("gated_delta_net"), {"linear_attn_config.decay_granularity": "channel"},
    ),
    "linear_attn_config.decay_rank": (linear("kimi_delta_attention"), {"linear_attn_config.decay_rank": 3}),
    "precision.linear_decay": (linear("gated_delta_net"), {"precision.linear_decay": "activation"}),
    "linear_attn_config.lower_bound": (
        linear("gated_delta_net", linear_attn_config={"decay": "bounded_sigmoid", "lower_bound": -3.0}),
        {"linear_attn_config.lower_bound": -1.0},
    ),
    "linear_attn_config.decay_normalizer": (
        linear("gated_linear_attention"), {"linear_attn_config.decay_normalizer": 3.0},
    ),
    "precision.linear_float32_parameters": (linear("gated_delta_net"), {"precision.linear_float32_parameters": True}),
    "linear_attn_config.allow_neg_eigval": (linear("gated_delta_net"), {"linear_attn_config.allow_neg_eigval": True}),
    "linear_attn_config.output_norm": (linear("gated_delta_net"), {"linear_attn_config.output_norm": "full"}),
    "linear_attn_config.norm_before_gate": (linear("gated_delta_net"), {"linear_attn_config.norm_before_gate": False}),
    "precision.linear_norm": (linear("gated_delta_net"), {"precision.linear_norm": "float32"}),
    "linear_attn_config.norm_eps": (linear("gated_delta_net"), {"linear_attn_config.norm_eps": 0.1}),
    "linear_attn_config.num_householder": (linear("delta_product"), {"linear_attn_config.num_householder": 3}),
    "linear_attn_config.output_gate": (linear("gated_delta_net"), {"linear_attn_config.output_gate": "sigmoid"}),
    "linear_attn_config.gate_rank": (linear("gated_delta_net"), {"linear_attn_config.gate_rank": 3}),
    "linear_attn_config.time_step_limit": (linear("mamba2"), {"linear_attn_config.time_step_limit": [0.2, 0.4]}),
    "linear_attn_config.time_step_rank": (
        linear("mamba", linear_num_value_heads=8), {"linear_attn_config.time_step_rank": 2},
    ),
    "linear_attn_config.step_norm": (
        linear("mamba", linear_num_value_heads=8), {"linear_attn_config.step_norm": "rms_norm"},
    ),
    "linear_attn_config.time_step_min": (linear("mamba2"), {"linear_attn_config.time_step_min": 0.01}),
    "linear_attn_config.time_step_max": (linear("mamba2"), {"linear_attn_config.time_step_max": 0.2}),
    "linear_attn_config.time_step_floor": (linear("mamba2"), {"linear_attn_config.time_step_floor": 0.05}),
    "mup_multipliers.linear_in": (linear("mamba2"), {"mup_multipliers.linear_in": 0.6}),
    "mup_multipliers.linear_out": (linear("mamba2"), {"mup_multipliers.linear_out": 0.6}),
    "mup_multipliers.linear_sections": (
        linear("mamba2"), {"mup_multipliers.linear_sections": [0.9, 1.1, 0.7, 1.3, 0.8]},
    ),
    "mup_multipliers.attention_in": (
        {**linear("mamba2"), "layer_types": ["hybrid"] * 2}, {"mup_multipliers.attention_in": 0.6},
    ),
    "mup_multipliers.attention_out": (
        {**linear("mamba2"), "layer_types": ["hybrid"] * 2}, {"mup_multipliers.attention_out": 0.6},
    ),
    "shared_attention_adapter_rank": (SHARED, {"shared_attention_adapter_rank": 5}),
    "shared_mlp_adapter_rank": (SHARED, {"shared_mlp_adapter_rank": 5}),
    "gated_mlp": (PLAIN, {"gated_mlp": False}),
    "hidden_act": (PLAIN, {"hidden_act": "relu"}),
    "mlp_bias": (PLAIN, {"mlp_bias": True}),
    "intermediate_size": (PLAIN, {"intermediate_size": 30}),
    "mup_multipliers.mlp": (PLAIN, {"mup_multipliers.mlp": [0.7, 1.2]}),
    "num_experts": (EXPERTS, {"num_experts": 4}),
    "num_experts_per_tok": (EXPERTS, {"num_experts_per_tok": 3}),
    "moe_intermediate_size": (EXPERTS, {"moe_intermediate_size": 10}),
    "moe_latent_size": (EXPERTS, {"moe_latent_size": 14}),
    "zero_expert_num": (EXPERTS, {"zero_expert_num": 2}),
    "zero_expert_type": ({**EXPERTS, "zero_expert_num": 2}, {"zero_expert_type": "zero"}),
    "expert_bias": (EXPERTS, {"expert_bias": True}),
    "swiglu_limit": (EXPERTS, {"swiglu_limit": 0.3}),
    "swiglu_config.shared_limit": ({**EXPERTS, "n_shared_experts": 1}, {"swiglu_config.shared_limit": 0.3}),
    "swiglu_config.gate_softcap": (PLAIN, {"swiglu_config.gate_softcap": 0.7}),
    "swiglu_config.up_softcap": ({**EXPERTS, "n_shared_experts": 1}, {"swiglu_config.up_softcap": 0.4}),
    "router.latent_norm": ({**EXPERTS, "moe_latent_size": 16}, {"router.latent_norm": True}),
    "swiglu_config.activation_sparsity": (PLAIN, {"swiglu_config.activation_sparsity": 0.7}),
    "swiglu_config.dense_limit": (PLAIN, {"swiglu_config.dense_limit": 0.3}),
    "swiglu_config.dense_alpha": (PLAIN, {"swiglu_config.dense_alpha": 1.7}),
    "swiglu_config.dense_up_offset": (PLAIN, {"swiglu_config.dense_up_offset": 1.0}),
    "swiglu_config.clamp_behind_activation": (
        {**PLAIN, "swiglu_config.dense_limit": 0.3}, {"swiglu_config.clamp_behind_activation": True},
    ),
    "swiglu_config.alpha": (EXPERTS, {"swiglu_config.alpha": 1.7}),
    "swiglu_config.up_offset": (EXPERTS, {"swiglu_config.up_offset": 1.0}),
    "scoring_func": (EXPERTS, {"scoring_func": "sigmoid"}),
    "router.sparsemixer_jitter_eps": (
        {**EXPERTS, "scoring_func": "sparsemixer"}, {"router.sparsemixer_jitter_eps": 0.4},
    ),
    "router.score_after_topk": (
        {**EXPERTS, "scoring_func": "sigmoid"}, {"router.score_after_topk": True, "norm_topk_prob": False},
    ),
    "norm_topk_prob": (EXPERTS, {"norm_topk_prob": False}),
    "router.norm_topk_eps": (EXPERTS, {"router.norm_topk_eps": 0.5}),
    "router.norm_topk_min": (EXPERTS, {"router.norm_topk_min": 0.9}),
    "routed_scaling_factor": (EXPERTS, {"routed_scaling_factor": 2.0}),
    "n_group": (EXPERTS, {"n_group": 3, "topk_group": 1}),
    "topk_group": (GROUPS, {"topk_group": 1}),
    "router.group_score": (GROUPS, {"router.group_score": "max"}),
    "router.group_mask_value": (GROUPS, {"router.group_mask_value": "zero"}),
    "use_score_correction_bias": (EXPERTS, {"use_score_correction_bias": True}),
    "router.bias": (EXPERTS, {"router.bias": True}),
    "precision.router": (EXPERTS, {"precision.router": "float32_weight"}),
    "precision.router_weights": (EXPERTS, {"precision.router_weights": "activation"}),
    "router.weight_on_input": (EXPERTS, {"router.weight_on_input": True}),
    "router.logit_softcapping": (EXPERTS, {"router.logit_softcapping": 0.3}),
    "router.input_norm": (EXPERTS, {"router.input_norm": True}),
    "router.input_multiplier": ({**EXPERTS, "router.input_norm": True}, {"router.input_multiplier": 0.5}),
    "router.per_expert_scale": (EXPERTS, {"router.per_expert_scale": True}),
    "router.jitter_noise": (EXPERTS, {"router.jitter_noise": 0.1}),
    "n_shared_experts": (EXPERTS, {"n_shared_experts": 2}),
    "shared_expert_intermediate_size": ({**EXPERTS, "n_shared_experts": 1}, {"shared_expert_intermediate_size": 9}),
    "shared_expert_gate": ({**EXPERTS, "n_shared_experts": 1}, {"shared_expert_gate": True}),
    "shared_expert_combination_strategy": (
        {**EXPERTS, "n_shared_experts": 1}, {"shared_expert_combination_strategy": "average"},
    ),
}  # fmt: skip
EVERY_TIME = (
    "norm_eps", "num_attention_heads", "head_dim", "attn_output_gate", "attention_sinks", "qk_norm", "kv_lora_rank",
    "index_topk", "sliding_window", "attention_chunk_size", "sparse_attention_stride", "rope_parameters",
    "linear_conv_kernel_dim", "mup_multipliers.attention_in", "gated_mlp", "num_experts", "router.input_norm",
)  # fmt: skip


def make(flags, own=None):
    flags = {**SIZES, **flags, "max_position_embeddings": 64}
    model = ZooForCausalLM(ZooConfig(**deepcopy(flags), **({} if own is None else {"per_layer_config": {1: own}})))
    randomize(model)
    return model.eval()


def load(model, weights, layer):
    """`weights` into a model, but for what the other layer than `layer` has."""
    kept = {name: value for name, value in weights.items() if f".layers.{1 - layer}." not in name}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not any(f".layers.{layer}." in name for name in (*missing, *unexpected))


def output_of(model, layer, tokens, stream=None):
    """What `layer` of the model gives for the tokens, its first layer giving `stream` if there is one."""
    found = []
    hooks = [model.model.layers[layer].register_forward_hook(lambda module, args, output: found.append(output))]
    if stream is not None:
        hooks.append(model.model.layers[0].register_forward_hook(lambda module, args, output: stream))
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found[0]


@torch.no_grad()
def expected_logits(mixed, flags, own, tokens):
    """By two models whose layers do not differ: layer 0 of one of `flags` alone, layer 1 of one that has `own` all
    over, on what the former gives; embedding, last norm and head of the former."""
    first, second = make(flags), make({**flags, **own})
    load(first, mixed.state_dict(), 0)
    load(second, mixed.state_dict(), 1)
    stream = output_of(second, 1, tokens, output_of(first, 0, tokens))
    return first.lm_head(first.model.norm(stream))


@pytest.mark.parametrize("field", only(EVERY_TIME, CASES))
def test_a_field_of_one_layer(field, tmp_path):
    flags, own = CASES[field]
    mixed, tokens = make(flags, own), torch.randint(3, 101, (2, TOKENS))
    expected = expected_logits(mixed, flags, own, tokens)
    with torch.no_grad():
        check_cached(mixed, tokens, expected)
        if "sparse_attention_pattern" not in flags:
            check_padded(mixed, tokens, expected)
        check_generated(mixed, tokens, padding="sparse_attention_pattern" not in flags)
        check_saved(mixed, tokens, mixed(tokens).logits, tmp_path)
    mixed.train()
    mixed(tokens, labels=tokens).loss.backward()


def test_every_field_of_the_list_has_a_case():
    assert sorted(CASES) == sorted(name for names in PER_LAYER_FIELDS.values() for name in names)


def own_values(config, index):
    """What layer `index` has of its own, as config.json says it."""
    return config.to_dict()["per_layer_config"][str(index)]


def refusal(**fields):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        ZooConfig(**{**SIZES, **fields})
    return str(error.value)


def another(field):
    """A value of the field's type that is not its default."""
    if names := getattr(field.metadata.get("kind"), "names", ()):
        return next(name for name in names if name != field.default)
    default = field.default if isinstance(field.default, (bool, int, float, str)) else None
    if isinstance(default, bool) or "bool" in str(field.type):
        return not default
    if isinstance(default, str) or "str" in str(field.type):
        return "other"
    return {"other": 3} if "dict" in str(field.type) else 3


NOT_PER_LAYER = {
    name: field for name, field in described(ZooConfig).items() if name not in CASES and not name.startswith("_")
}


@pytest.mark.parametrize("name", NOT_PER_LAYER)
def test_every_other_field_is_refused_by_name(name):
    field = NOT_PER_LAYER[name]
    value = another(field)
    says = refusal(per_layer_config={1: {name: value}})
    assert says.startswith(f"per_layer_config[1]: {name}={value!r} ")
    assert "for the whole model" in says or f"give {name} a list" in says


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{}, {"norm_eps": 0.1}], "must be a dict of dicts"),
        ("norm_eps", "must be a dict of dicts"),
        ({2: {"norm_eps": 0.1}}, "per_layer_config has 2, which is no layer: they are 0 to 1"),
        ({-1: {"norm_eps": 0.1}}, "has -1, which is no layer"),
        ({True: {"norm_eps": 0.1}}, "has True, which is no layer"),
        ({"one": {"norm_eps": 0.1}}, "has 'one', which is no layer"),
        ({1: None}, r"per_layer_config[1]=None must be a dict"),
        ({1: [3]}, r"per_layer_config[1]=[3] must be a dict"),
        ({1: {"norm_epsi": 0.1}}, "per_layer_config[1]: norm_epsi=0.1 is not a field of ZooConfig. Did you mean"),
        ({1: {"skip": ["mlp"]}}, "skip=['mlp'] is not a field"),
        ({1: {"norm_eps": "small"}}, "per_layer_config[1]: Field 'norm_eps' with value 'small'"),
        ({1: {"norm_eps": -1.0}}, "per_layer_config[1]: norm_eps=-1.0 must be greater than 0"),
        ({1: {"num_key_value_heads": 4}}, "Layer 1 of per_layer_config: num_attention_heads=6 must be a multiple of"),
        ({1: {"sliding_window": 3}}, "sliding_window=3 does nothing in layer 1: only a 'sliding_attention'"),
        ({1: {"num_experts": 3}}, "num_experts=3 does nothing in layer 1: only a 'sparse' layer"),
        ({1: {"rope_parameters": {"rope_type": "default"}}}, "rope_theta=None of 'default' must be a number"),
        (
            {1: {"qk_norm_config.eps": 0.1}},
            "Layer 1 of per_layer_config: qk_norm_config.eps=0.1 only means something with qk_norm",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_layer_is_said_with_its_number(given, says):
    assert says in refusal(per_layer_config=given)


def test_a_bias_for_all_layers_needs_the_same_heads_in_all():
    for kind in ("alibi", "relative"):
        says = refusal(position_embedding_type=kind, per_layer_config={1: {"num_attention_heads": 4}})
        assert f"with position_embedding_type={kind!r}" in says


def test_a_layer_that_shares_keys_sees_and_turns_as_its_source():
    shared = {"num_hidden_layers": 3, "num_kv_shared_layers": 1, "layer_types": [SLIDING] * 3, "sliding_window": 3}
    assert "sliding_window is 3 in layer 1" in refusal(**shared, per_layer_config={2: {"sliding_window": 5}})
    assert "rope_interleave is False in layer 1" in refusal(**shared, per_layer_config={2: {"rope_interleave": True}})
    own = {index: {"sliding_window": 5} for index in (1, 2)}
    assert ZooConfig(**{**SIZES, **shared}, per_layer_config=own).kv_source_of(2) == 1


def test_what_is_derived_is_derived_for_each_layer():
    sizes = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    config = ZooConfig(**sizes, num_attention_heads=6, per_layer_config={"1": {"num_attention_heads": 4}})
    assert own_values(config, 1) == {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
    normed = ZooConfig(**SIZES, per_layer_config={1: {"qk_norm": "rms_norm", "rms_norm_eps": 0.1}})
    layers = ZooForCausalLM(normed).model.layers
    assert layers[1].self_attn.q_norm.eps == layers[1].attn_norm.eps == 0.1
    routed = ZooConfig(
        **SIZES, **EXPERTS, per_layer_config={1: {"scoring_func": "sigmoid", "router.score_after_topk": True}}
    )
    assert routed.per_layer_config[0].router["score_after_topk"] is False
    stored = ZooConfig.from_dict(normed.to_dict())
    assert own_values(stored, 1) == own_values(normed, 1)
    assert ZooConfig(**SIZES, per_layer_config={1: {"norm_eps": 1e-6}}).is_heterogeneous is False


def test_windows_and_chunks_of_other_sizes_in_one_model():
    """transformers refuses both fields in one layer of such a config; each layer keeps the one it reads."""
    config = ZooConfig(
        **SIZES, layer_types=[SLIDING, CHUNKED], sliding_window=3, attention_chunk_size=5,
        per_layer_config={1: {"attention_chunk_size": 4}},
    )  # fmt: skip
    reaches = [(layer.sliding_window, layer.attention_chunk_size) for layer in config.per_layer_config]
    assert reaches == [(3, None), (None, 4)]
    assert ZooConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.sampled(9)
@pytest.mark.parametrize("field", CASES)
def test_layers_that_differ_in_a_field_are_two_rows_with_two_texts(field):
    flags, own = CASES[field]
    config = ZooConfig(**{**SIZES, **deepcopy(flags)}, per_layer_config={1: deepcopy(own)})
    rows = [layer for _, _, layer in layer_runs(measure(config)["layers"])]
    assert len(rows) == 2
    texts = [{name: row[name] for name in TEXTS} for row in rows]
    assert texts[0] != texts[1] and rows[0]["kind"] != rows[1]["kind"]


def test_what_the_model_says_and_a_layer_does_not_read_is_none_there_and_comes_back():
    fields = {**SIZES, **EXPERTS, "norm_topk_prob": True, "router": {"norm_topk_eps": 1e-3, "bias": True}}
    config = ZooConfig(**fields, per_layer_config={1: {"norm_topk_prob": False, "router": {"norm_topk_eps": None}}})
    again = ZooConfig(**json.loads(json.dumps(config.to_diff_dict())))
    for one in (config, again):
        eps = [layer.router["norm_topk_eps"] for layer in one.per_layer_config]
        assert eps == [1e-3, None] and one.per_layer_config[1].router["bias"]
