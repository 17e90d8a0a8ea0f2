"""What the field calls by other words than the config: each word is answered with the name it has here.

Nothing is taken under two names; a word of these tables is refused like any unknown one, with the answer beside it.
"""

from collections.abc import Iterable


def called(name: str) -> tuple[str, str]:
    return name, f"it is called {name!r}"


LATENT_IS = "latent attention is called 'latent'"
GROUPED_IS = "attention with heads of keys and values is called 'grouped_query'"
DELTA_IS = "the gated delta rule is called 'gated_delta_net'"
SLIDING_IS = "attention in a window is called 'sliding_attention'"
FULL_IS = "attention to all tokens before is called 'full_attention'"
LINEAR_IS = "a recurrence is called 'linear_attention', and linear_attention_type says which"
INDEXED_IS = "latent attention with an indexer is called 'indexed_attention'"
CONV_IS = "a short convolution is called 'conv', and linear_attention_type='short_conv' says which"
GATE_IS = "the gate is gated_mlp=True (the default), hidden_act names its activation alone"
EXPERTS_ARE = "an MLP of experts is called 'sparse'"
DENSE_IS = "an MLP without experts is called 'dense'"
A_RECURRENCE = ("linear_attention", LINEAR_IS)
# word -> answers, each with the name that it is about: the first whose name is allowed is given.
VALUE_WORDS = {
    "mla": (("latent", LATENT_IS),),
    "multi_head_latent": (("latent", LATENT_IS),),
    "multi_latent": (("latent", LATENT_IS),),
    "diff": (called("differential"),),
    "diff_transformer": (called("differential"),),
    "fox": (called("forgetting"),),
    "stickbreaking": (called("stick_breaking"),),
    "path_attn": (called("path"),),
    "mfa": (called("multi_matrix_factorization"),),
    "tpa": (called("tensor_product"),),
    "gta": (called("grouped_tied"),),
    "resformer": (called("value_residual"),),
    "gqa": (("grouped_query", f"{GROUPED_IS}, and num_key_value_heads says how many"),),
    "mha": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads = num_attention_heads"),),
    "multi_head": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads = num_attention_heads"),),
    "mqa": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads=1"),),
    "multi_query": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads=1"),),
    "dsa": (("indexed_attention", INDEXED_IS), ("latent", f"{LATENT_IS}; an indexer is for layer_types to say")),
    "deepseek_sparse_attention": (("indexed_attention", INDEXED_IS),),
    "sparse_attention": (("indexed_attention", INDEXED_IS),),
    "gdn": (("gated_delta_net", DELTA_IS), A_RECURRENCE),
    "gated_deltanet": (("gated_delta_net", DELTA_IS), A_RECURRENCE),
    "deltanet": (called("delta_net"), A_RECURRENCE),
    "deltaproduct": (called("delta_product"), A_RECURRENCE),
    "kda": (called("kimi_delta_attention"), A_RECURRENCE),
    "gla": (called("gated_linear_attention"), A_RECURRENCE),
    "lightning": (called("lightning_attention"), A_RECURRENCE),
    "ssd": (called("mamba2"), A_RECURRENCE),
    "ssm": (called("mamba2"), A_RECURRENCE),
    "mamba1": (called("mamba"), A_RECURRENCE),
    "mamba": (A_RECURRENCE,),
    "mamba2": (A_RECURRENCE,),
    "recurrent": (A_RECURRENCE,),
    "linear": (A_RECURRENCE,),
    "rglru": (called("rg_lru"), A_RECURRENCE),
    "griffin": (called("rg_lru"), A_RECURRENCE),
    "shortconv": (called("short_conv"), ("conv", CONV_IS)),
    "convolution": (called("short_conv"), ("conv", CONV_IS)),
    "swa": (("sliding_attention", SLIDING_IS),),
    "local": (("sliding_attention", SLIDING_IS),),
    "local_attention": (("sliding_attention", SLIDING_IS),),
    "sliding": (("sliding_attention", SLIDING_IS),),
    "sliding_window": (("sliding_attention", SLIDING_IS),),
    "sliding_window_attention": (("sliding_attention", SLIDING_IS),),
    "chunked": (called("chunked_attention"),),
    "global": (("full_attention", FULL_IS),),
    "global_attention": (("full_attention", FULL_IS),),
    "full": (("full_attention", FULL_IS),),
    "attention": (("full_attention", FULL_IS),),
    "attn": (("full_attention", FULL_IS),),
    "parallel_hybrid": (called("hybrid"),),
    "moe": (("sparse", EXPERTS_ARE),),
    "experts": (("sparse", EXPERTS_ARE),),
    "mlp": (("dense", DENSE_IS),),
    "ffn": (("dense", DENSE_IS),),
    "rotary": (("rope", "rotary positions are called 'rope'"),),
    "nope": (("none", "no positions are called 'none'"),),
    "absolute": (("learned", "a table of positions is called 'learned'"),),
    "learned_absolute": (("learned", "a table of positions is called 'learned'"),),
    "sinusoid": (called("sinusoidal"),),
    "t5": (("relative", "T5's bias by bucket of distance is called 'relative'"),),
    "rmsnorm": (called("rms_norm"),),
    "rms": (called("rms_norm"),),
    "layernorm": (called("layer_norm"),),
    "ln": (called("layer_norm"),),
    "swiglu": (("silu", f"use 'silu': {GATE_IS}"),),
    "geglu": (("gelu", f"use 'gelu': {GATE_IS}"),),
    "reglu": (("relu", f"use 'relu': {GATE_IS}"),),
    "squared_relu": (called("relu2"),),
    "prenorm": (called("pre_norm"),),
    "pre_ln": (called("pre_norm"),),
    "postnorm": (called("post_norm"),),
    "post_ln": (called("post_norm"),),
    "sandwich": (called("sandwich_norm"),),
    "sub_ln": (called("sub_norm"),),
    "attnres": (called("attention_residual"),),
    "attention_residuals": (called("attention_residual"),),
    "peri_ln": (called("sandwich_norm"),),
    "parallel_residual": (called("parallel"),),
    "mhc": (called("hyper_connection"),),
    "hyper_connections": (called("hyper_connection"),),
}  # fmt: skip
# field -> the words for it.
SAME_FIELD = {
    "vocab_size": "n_vocab vocabulary_size",
    "hidden_size": "d_model n_embd model_dim embed_dim hidden_dim dim",
    "intermediate_size": "d_ff dff ffn_dim n_inner ffn_hidden_size intermediate_dim mlp_dim intermediate_size_mlp "
    "prefix_dense_intermediate_size",
    "num_hidden_layers": "n_layers n_layer num_layers num_decoder_layers decoder_layers",
    "num_attention_heads": "n_heads n_head num_heads attention_heads decoder_attention_heads",
    "num_key_value_heads": "n_kv_heads n_kv_head num_kv_heads kv_heads kv_n_heads num_query_groups "
    "num_attention_groups",
    "head_dim": "d_head d_kv head_size attention_head_dim attention_head_size kv_channels",
    "max_position_embeddings": "n_positions n_ctx max_seq_len max_seq_length context_length seq_length seq_len "
    "model_max_length max_sequence_length block_size",
    "residual_factors.stream": "hc_magnitude",
    "block_config.gated_norm_rank": "gated_norm_rank",
    "block_config.laurel_rank": "laurel_rank laurel",
    "block_config.attn_res_block_size": "attn_res_block_size attnres_block_size",
    "swiglu_config.gate_softcap": "activation_situ_beta mlp_gate_softcap",
    "swiglu_config.up_softcap": "activation_situ_linear_beta mlp_up_softcap",
    "router.latent_norm": "latent_moe_use_norm",
    "moe_latent_size": "routed_expert_hidden_size",
    "block_config.altup_num_inputs": "altup_num_inputs",
    "block_config.altup_active_idx": "altup_active_idx",
    "block_config.altup_coef_clip": "altup_coef_clip",
    "block_config.altup_correct_scale": "altup_correct_scale",
    "swiglu_config.activation_sparsity": "activation_sparsity activation_sparsity_pattern",
    "mla_config.output_groups": "o_groups",
    "mla_config.output_rank": "o_lora_rank",
    "mtp.hidden_states_first": "mtp_hidden_states_first",
    "mtp.loss_coef": "mtp_loss_coef mtp_loss_weight mtp_loss_scaling_factor",
    "num_mtp_layers": "num_nextn_predict_layers mtp_num_layers mtp_num_hidden_layers n_predict num_nextn_predict",
    "hidden_act": "activation activation_function hidden_activation mlp_hidden_act act_fn",
    "norm_type": "normalization norm",
    "norm_eps": "eps epsilon ln_eps",
    "norm_elementwise_affine": "layer_norm_elementwise_affine",
    "tie_word_embeddings": "tie_embeddings tied_embeddings weight_tying tie_weights",
    "embedding_size": "word_embed_proj_dim",
    "embedding_multiplier": "scale_emb scale_embedding embedding_scale",
    "residual_multiplier": "scale_depth residual_scale",
    "initializer_range": "init_std initializer_std",
    "residual_dropout": "resid_pdrop resid_dropout hidden_dropout hidden_dropout_prob",
    "embedding_dropout": "embd_pdrop emb_pdrop embed_dropout",
    "attention_dropout": "attn_pdrop attn_dropout attention_probs_dropout_prob",
    "attention_bias": "qkv_bias use_qkv_bias use_bias enable_bias bias",
    "attention_sinks": "sinks attention_sink sink_tokens",
    "attn_output_gate": "attention_gate gated_attention attn_gate attention_output_gate",
    "attn_logit_softcapping": "attn_logit_softcap attention_softcap attn_softcap",
    "final_logit_softcapping": "logit_softcap logit_softcapping logits_soft_cap final_logit_softcap",
    "layer_types": "layers_block_type block_pattern attention_layers attn_types",
    "sliding_window": "window window_size attention_window attention_window_size sliding_window_size",
    "attention_chunk_size": "attention_chunk",
    "use_bidirectional_attention": "bidirectional",
    "no_rope_layers": "no_rope_layer_interval nope_layers",
    "rope_interleave": "rope_interleaving rotary_interleaved use_interleaved_rope",
    "gated_mlp": "glu gated_linear_unit use_glu",
    "num_experts": "n_experts num_local_experts n_routed_experts num_moe_experts moe_num_experts enable_moe_block",
    "num_experts_per_tok": "experts_per_token num_experts_per_token num_selected_experts moe_top_k moe_topk moe_k "
    "top_k_experts moe_router_topk n_activated_experts",
    "moe_intermediate_size": "expert_ffn_hidden_size moe_ffn_hidden_size expert_dim",
    "n_shared_experts": "num_shared_experts moe_num_shared_experts num_shared_expert",
    "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size shared_intermediate_size "
    "share_expert_dim share_expert_dims",
    "scoring_func": "expert_selection_fn score_func router_scoring gate_type moe_router_activation_func",
    "router.sparsemixer_jitter_eps": "sparsemixer_jitter_eps",
    "router.score_after_topk": "score_after_topk",
    "router.norm_topk_eps": "norm_topk_eps",
    "router.norm_topk_min": "norm_topk_min moe_norm_min",
    "router.group_score": "group_score",
    "router.group_mask_value": "group_mask_value",
    "router.bias": "router_bias",
    "router.weight_on_input": "apply_router_weight_on_input",
    "router.input_norm": "router_input_norm",
    "router.input_multiplier": "router_input_multiplier",
    "router.per_expert_scale": "router_per_expert_scale",
    "router.jitter_noise": "router_jitter_noise input_jitter_noise",
    "position_config.offset": "position_offset offset",
    "position_config.ids_from_mask": "position_ids_from_mask",
    "position_config.sinusoid_layout": "sinusoid_layout",
    "position_config.alibi_scaled": "alibi_scaled",
    "router_aux_loss_coef": "aux_loss_alpha",
    "mup_multipliers.linear_in": "linear_in_multiplier ssm_in_multiplier",
    "mup_multipliers.linear_out": "linear_out_multiplier ssm_out_multiplier",
    "mup_multipliers.linear_sections": "linear_section_multipliers ssm_multipliers",
    "mup_multipliers.key": "key_multiplier",
    "mup_multipliers.mlp": "mlp_multipliers",
    "mup_multipliers.attention_in": "attention_in_multiplier",
    "mup_multipliers.attention_out": "attention_out_multiplier",
    "norm_topk_prob": "moe_renormalize route_norm",
    "routed_scaling_factor": "route_scale",
    "n_group": "num_expert_group n_expert_groups num_expert_groups",
    "topk_group": "n_limited_groups",
    "use_score_correction_bias": "use_expert_bias e_score_correction_bias",
    "output_z_loss_coef": "z_loss_coefficient z_loss",
    "linear_num_value_heads": "mamba_n_heads mamba_num_heads n_mamba_heads nheads",
    "linear_num_key_heads": "mamba_n_groups mamba_ngroups n_groups ngroups linear_num_heads",
    "linear_key_head_dim": "mamba_d_state state_size ssm_state_size d_state linear_head_dim",
    "linear_value_head_dim": "mamba_d_head mamba_headdim mamba_head_dim headdim",
    "linear_conv_kernel_dim": "mamba_d_conv conv_kernel conv1d_width conv_l_cache d_conv short_conv_kernel_size",
    "linear_attn_config.conv_bias": "linear_conv_bias mamba_conv_bias use_conv_bias conv_bias",
    "linear_attn_config.bias": "linear_bias mamba_proj_bias projectors_bias",
    "linear_attn_config.act": "linear_act mamba_hidden_act hidden_mamba_act",
    "linear_attn_config.norm_eps": "linear_norm_eps mixer_rms_eps",
    "linear_attn_config.norm_before_gate": "linear_norm_before_gate mamba_norm_before_gate",
    "linear_attn_config.output_norm": "linear_output_norm mamba_rms_norm",
    "linear_attn_config.lower_bound": "linear_lower_bound kda_lower_bound",
    "linear_attn_config.time_step_rank": "time_step_rank mamba_dt_rank dt_rank",
    "linear_attn_config.time_step_min": "time_step_min linear_dt_min dt_min",
    "linear_attn_config.time_step_max": "time_step_max linear_dt_max dt_max",
    "linear_attn_config.time_step_floor": "time_step_floor linear_dt_init_floor",
    "linear_attn_config.qk_norm": "linear_qk_norm",
    "linear_attn_config.feature_map": "linear_feature_map",
    "linear_attn_config.decay": "linear_decay",
    "linear_attn_config.decay_granularity": "linear_decay_granularity",
    "linear_attn_config.decay_rank": "linear_decay_rank",
    "linear_attn_config.decay_normalizer": "linear_decay_normalizer",
    "linear_attn_config.allow_neg_eigval": "linear_allow_neg_eigval",
    "linear_attn_config.output_gate": "linear_output_gate",
    "linear_attn_config.gate_rank": "linear_gate_rank",
    "linear_attn_config.step_norm": "linear_step_norm",
    "linear_attn_config.multiplier": "linear_attention_multiplier",
    "linear_attn_config.time_step_limit": "time_step_limit",
    "qk_norm_config.scope": "qk_norm_scope",
    "qk_norm_config.weight": "qk_norm_weight",
    "qk_norm_config.bias": "qk_norm_bias",
    "qk_norm_config.position": "qk_norm_position",
    "qk_norm_config.layers": "qk_norm_layers",
    "qk_norm_config.eps": "qk_norm_eps",
    "attn_temperature.layers": "attn_temperature_layers attn_temperature_tuning",
    "attn_temperature.scale": "attn_scale",
    "attn_temperature.floor_scale": "floor_scale",
    "attn_temperature.offset": "attn_temperature_offset",
    "indexer.rope_interleave": "indexer_rope_interleave",
    "indexer.warmup": "indexer_warmup",
    "mla_config.norm_eps": "mla_norm_eps",
    "mla_config.scale_q_lora": "mla_scale_q_lora",
    "mla_config.scale_kv_lora": "mla_scale_kv_lora",
    "mla_config.scale_by_mscale": "scale_attn_by_mscale",
    "precision.attention_upcast": "reorder_and_upcast_attn attention_softmax_in_fp32",
    "initializer.type": "initializer_type",
    "initializer.residual_type": "residual_initializer_type",
    "initializer.embedding_range": "embedding_initializer_range",
    "initializer.cutoff": "initializer_cutoff",
    "residual_factors.full_attn_alpha": "full_attn_alpha_factor",
    "residual_factors.full_attn_beta": "full_attn_beta_factor",
    "residual_factors.linear_attn_alpha": "linear_attn_alpha_factor",
    "residual_factors.linear_attn_beta": "linear_attn_beta_factor",
    "residual_factors.mlp_alpha": "mlp_alpha_factor",
    "residual_factors.mlp_beta": "mlp_beta_factor",
    "precision.residual_in_fp32": "residual_in_fp32",
    "hidden_size_per_layer_input": "ple per_layer_embeddings",
    "num_kv_shared_layers": "kv_sharing cross_layer_attention",
    "eos_token_id": "eod_token_id",
}  # fmt: skip
BY_LAYER = "use {}, which says it layer by layer: {}={!r}"
WORDS_BY_LAYER = BY_LAYER.format("layer_types", "layer_types", "5*sliding_attention, full_attention")
MLPS_BY_LAYER = BY_LAYER.format("mlp_layer_types", "mlp_layer_types", "dense, sparse")
INNER_WIDTH = "use linear_num_value_heads and linear_value_head_dim, whose product is the inner width"
ROTATED_PART = "use rope_parameters with a partial_rotary_factor, the rotating part of a head"
INVERSE = "use logits_scaling, which divides: its inverse"
# field -> the words about it that take a sentence.
SENTENCES = {
    "attention_type": {
        "mla multi_latent_attention use_mla": "use attention_type='latent'",
        "mixer token_mixer": "use attention_type, or linear_attention_type for a 'linear_attention' of layer_types",
    },
    "num_key_value_heads": {
        "gqa": "use num_key_value_heads, a part of num_attention_heads",
        "mha": "use num_key_value_heads, as many as num_attention_heads",
        "mqa multi_query": "use num_key_value_heads=1",
    },
    "linear_attention_type": {
        "gdn": "use linear_attention_type='gated_delta_net' for layers of layer_types",
        "kda": "use linear_attention_type='kimi_delta_attention' for layers of layer_types",
        "ssm mamba mamba2": "use linear_attention_type='mamba2' or 'mamba' for layers of layer_types",
    },
    "layer_types": {
        "dsa": "use layer_types='indexed_attention' with attention_type='latent'",
        "sliding_window_pattern full_attn_idxs attn_layer_indices attn_layer_period attn_layer_offset "
        "global_attn_every_n_layers layer_group_size hybrid_layer_ids full_attention_interval max_window_layers "
        "full_attn_layer_idxs hybrid_override_pattern": WORDS_BY_LAYER,
    },
    "sliding_window": {"swa use_sliding_window": "use sliding_window, with 'sliding_attention' in layer_types"},
    "num_experts": {"moe": "use num_experts, with 'sparse' in mlp_layer_types"},
    "mlp_layer_types": {
        "first_k_dense_replace num_dense_layers decoder_sparse_step mlp_only_layers moe_layers moe_layer_freq "
        "interleave_moe_layer_step expert_layer_period expert_layer_offset moe_layer_interval moe_layer_start_index "
        "moe_layer_end_index": MLPS_BY_LAYER,
    },
    "router.group_score": {"topk_method": "use n_group, with router.group_score 'top2_sum' or 'max'"},
    "position_embedding_type": {
        "rotary rope use_rope use_rotary": "use position_embedding_type='rope', with rope_parameters",
        "alibi": "use position_embedding_type='alibi'",
        "nope": "use position_embedding_type='none', or no_rope_layers",
        "learned_pos_emb": "use position_embedding_type='learned'",
    },
    "rope_parameters": {
        "rotary_dim rotary_pct rotary_percent rope_pct": ROTATED_PART,
        "rotary_emb_base rotary_base rope_base": "use rope_parameters with a rope_theta",
        "rope_local_base_freq layer_rope_theta": "use rope_parameters with one dict for each layer type",
        "original_max_position_embeddings": "it stands in rope_parameters",
    },
    "norm_type": {"rmsnorm": "use norm_type='rms_norm'", "layernorm": "use norm_type='layer_norm'"},
    "qk_norm": {"use_qk_norm qk_layernorm use_qk_layernorm": "use qk_norm='rms_norm' or 'layer_norm'"},
    "qk_nope_head_dim": {"qk_head_dim": "use qk_nope_head_dim and qk_rope_head_dim, whose sum it is"},
    "hidden_act": {
        "swiglu": "use hidden_act='silu' with gated_mlp=True",
        "geglu": "use hidden_act='gelu' with gated_mlp=True",
    },
    "intermediate_size": {
        "expansion_ratio ffn_dim_multiplier multiple_of mlp_ratio block_multiple_of block_ffn_dim_multiplier "
        "intermediate_multiple_size": "use intermediate_size, the width itself",
    },
    "mlp_bias": {
        "add_bias_linear": "use attention_bias and mlp_bias, or linear_attn_config.bias of a recurrence",
        "no_bias": "attention_bias and mlp_bias are False where they are left out",
    },
    "block_type": {
        "parallel_residual use_parallel_residual parallel_attn": "use block_type='parallel'",
        "num_ln_in_parallel_attn": "use block_type='parallel_two_norms', or 'parallel' for one norm",
        "do_layer_norm_before": "use block_type='pre_norm' or 'post_norm'",
        "apply_residual_connection_post_layernorm": "use block_type='pre_norm_residual'",
        "use_post_norm": "use block_type='sandwich_norm', or 'output_norm' for norms behind alone",
        "mhc hyper_connections": "use block_type='hyper_connection'",
    },
    "attention_multiplier": {
        "query_pre_attn_scalar": "use attention_multiplier, here query_pre_attn_scalar ** -0.5",
        "scale_attn_weights": "use attention_multiplier, 1.0 for scores that are not scaled",
        "softmax_scale attention_scale": "use attention_multiplier",
    },
    "logits_scaling": {"logit_scale lm_head_multiplier output_multiplier dim_model_base": INVERSE},
    "residual_dropout": {"dropout": "use residual_dropout, attention_dropout or embedding_dropout"},
    "tie_word_embeddings": {"untie_embeddings_and_output_weights": "use tie_word_embeddings, which is the opposite"},
    "linear_value_head_dim": {"mamba_expand expand mamba_d_ssm lru_width": INNER_WIDTH},
    "linear_attn_config.decay": {"kda_safe_gate": "use linear_attn_config.decay='bounded_sigmoid'"},
    "shared_attention_adapter_rank": {
        "adapter_rank use_shared_attention_adapter": "use shared_attention_adapter_rank and shared_mlp_adapter_rank",
    },
    "mtp.layer_type": {"mtp_layer_types": "use mtp.layer_type, one word for all of these layers"},
    "mtp.mlp_layer_type": {"mtp_mlp_layer_types": "use mtp.mlp_layer_type, one word for all of these layers"},
}  # fmt: skip
# word -> the field that it is about, and the answer.
FIELD_WORDS = {word: (field, f"use {field}") for field, words in SAME_FIELD.items() for word in words.split()} | {
    word: (field, says) for field, about in SENTENCES.items() for words, says in about.items() for word in words.split()
}


def about_value(value: object, choices: Iterable[str]) -> str:
    """What a value given to a field that does not exist is called among all `choices`: `" A sentence."`, else ""."""
    says = answer(value, choices) if isinstance(value, str) and value.lower() in VALUE_WORDS else None
    return f" {says[0].upper()}{says[1:]}." if says else ""


def answer(word: str, known: Iterable[str]) -> str | None:
    """What to say to a word that is none of `known` names (of fields, or of values that a field takes)."""
    known, word = {*known}, word.lower().replace("-", "_")
    fields = [FIELD_WORDS[word]] if word in FIELD_WORDS else []
    return next((says for name, says in (*VALUE_WORDS.get(word, ()), *fields) if name in known), None)
