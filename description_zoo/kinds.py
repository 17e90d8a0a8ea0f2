"""Which layers are of one kind, and the fields that a report of them has to name."""

from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.config_file import own_defaults
from configuration_zoo.field_settings import described, settings_of, spread
from configuration_zoo.fields_per_layer import PER_LAYER_FIELDS, READERS

from .layers import indexer_words

# Fields that layers.py says in words; others are named where layers differ in them or a model sets them.
SAID = {
    "attention_bias", "attention_chunk_size", "attention_k_eq_v", "attention_multiplier", "attention_out_bias",
    "attention_sinks", "attention_value_scale", "attn_logit_softcapping", "attn_output_gate",
    "attn_temperature.layers", "clip_qkv", "expert_bias", "gated_mlp", "head_dim", "hidden_act", "index_head_dim",
    "index_n_heads", "index_topk", "intermediate_size", "kv_lora_rank", "linear_key_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_value_head_dim", "mlp_bias", "moe_intermediate_size", "moe_latent_size",
    "n_group", "n_shared_experts", "norm_type", "num_attention_heads", "num_experts", "num_experts_per_tok",
    "num_key_value_heads", "q_lora_rank", "qk_nope_head_dim", "qk_norm", "qk_norm_config.layers",
    "qk_norm_config.position", "qk_norm_config.scope", "qk_rope_head_dim", "residual_factors.full_attn_alpha",
    "residual_factors.full_attn_beta", "residual_factors.linear_attn_alpha", "residual_factors.linear_attn_beta",
    "residual_factors.mlp_alpha", "residual_factors.mlp_beta", "residual_multiplier", "rope_interleave",
    "rope_parameters", "scale_attn_by_inverse_layer_idx", "scoring_func", "shared_expert_combination_strategy",
    "shared_expert_gate", "shared_expert_intermediate_size", "sliding_window", "sparse_attention_stride", "topk_group",
    "use_score_correction_bias", "v_head_dim", "value_norm", "value_residual", "zero_expert_num",
}  # fmt: skip
# What only training or rounding reads: named where layers differ in it alone.
QUIET = {
    "attention_dropout", "linear_attn_config.norm_eps", "linear_attn_config.time_step_floor",
    "linear_attn_config.time_step_max", "linear_attn_config.time_step_min", "mla_config.norm_eps", "norm_eps",
    "qk_norm_config.eps", "residual_dropout", "router.jitter_noise", "router.norm_topk_eps",
    "router.sparsemixer_jitter_eps",
}  # fmt: skip


def read_fields(config: ZooConfig, index: int) -> dict[str, Any]:
    """Every field that layer `index` reads and that may differ between layers; `config` is its own view."""
    readers = [names for name, names in PER_LAYER_FIELDS.items() if READERS[name](config, index)]
    return {name: getattr(config, name) for names in readers for name in names}


def named_fields(layer: dict[str, Any]) -> list[str]:
    """`routed_scaling_factor 2.5` of a layer's report."""
    return [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in layer["differs"].items()
    ]


def kinds_of(config: ZooConfig) -> tuple[list[int], list[dict[str, Any]]]:
    """(for each layer the number of its kind; for each layer the fields that no word of `layer_words` says and in which
    it differs from another that reads them, or from what stands where a model says nothing)."""
    views = config.per_layer_config
    read = [read_fields(view, index) for index, view in enumerate(views)]
    placed = [_place(view, index) for index, view in enumerate(views)]
    shown = [name for name in described(ZooConfig) if name not in SAID]
    stated, usual = set(spread(config.to_diff_dict(), settings_of(ZooConfig))), own_defaults(ZooConfig)
    differing = {name for name in shown if len({repr(one[name]) for one in read if name in one}) > 1}
    stated = {name for name in stated if name not in QUIET and not name.startswith("precision.")}
    found, numbers, fields = {}, [], []
    for one, place in zip(read, placed, strict=True):
        numbers.append(found.setdefault(repr((sorted(one.items(), key=str), place)), len(found)))
        own = {name for name in stated & one.keys() if one[name] not in (None, usual.get(name))}
        fields.append({name: one[name] for name in shown if name in one and name in differing | own})
    return numbers, fields


def _place(config: ZooConfig, index: int) -> tuple:
    """What a layer is by the lists that have an entry for each."""
    attends = index in config.softmax_layers
    rope = config.position_embedding_type == "rope" and attends
    return (
        config.layer_types[index],
        config.block_types[index],
        config.mlp_layer_types[index] if config.block_types[index] != "mixer_only" else None,
        config.mixer_types[index],
        config.attention_types[index] if attends else None,
        config.recurrent_mixers[index],
        config.sparse_pattern_of(index),
        config.rope_table_of(index) if rope else None,
        config.kv_source_of(index) if config.shares_key_values(index) else None,
        indexer_words(config, index),
    )
