"""Rows of the combination test: for each group of concepts, ways to set its fields that are complete in themselves.

A new flag comes with a row here; test_combinations.py fails for a field of ZooConfig that no row sets.
"""

LAYERS = 3
SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
# Fields that say how large, not which concept, or that no computation reads.
NOT_CONCEPTS = {
    *SIZES,
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
    "initializer_range", "is_encoder_decoder", "label2id", "output_hidden_states", "problem_type", "return_dict",
    "source_config", "source_extras", "time_step_floor", "time_step_max", "time_step_min", "transformers_version",
    "use_cache",
}  # fmt: skip

FULL, SLIDING, CHUNKED, INDEXED = ("full_attention", "sliding_attention", "chunked_attention", "indexed_attention")
LINEAR, CONV, HYBRID = "linear_attention", "conv", "hybrid"
ROPE = {"rope_type": "default", "rope_theta": 100.0}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
# Longer than the test's sequences: beyond it all positions turn otherwise, so steps and whole differ by definition
# (test_rotary.py has what `generate` makes of that).
LONG = {"short_factor": [1.5] * 6, "long_factor": [3.0] * 6, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 4.0, "original_max_position_embeddings": 16}
LATENT = {
    "attention_type": "latent",
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "num_key_value_heads": 6,
}
INDEXER = {"index_topk": 4, "index_n_heads": 17, "index_head_dim": 8}
HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 12,
}
SHARED_BLOCKS = {"block_type": ["shared_block", "mixer_only", "shared_block"], "num_mem_blocks": 1}
STATES = {**HEADS, "linear_key_head_dim": 7, "linear_num_value_heads": 8}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}


def linear(kind, layer_types=(LINEAR, FULL, LINEAR), **fields):
    return {"linear_attention_type": kind, "layer_types": list(layer_types), **fields}


ROWS = {
    "norm": [
        {},
        {"norm_cast": "scale_then_cast", "norm_eps": 1e-5},
        {"norm_unit_offset": True},
        {"norm_elementwise_affine": False},
        {"norm_type": "layer_norm"},
        {"norm_type": "layer_norm", "norm_bias": False, "norm_cast": "float32"},
        {"embedding_norm": True, "final_norm": False},
    ],
    "block": [
        {},
        {"block_type": "post_norm"},
        {"block_type": "output_norm", "residual_multiplier": 0.7},
        {"block_type": "sandwich_norm"},
        {"block_type": "scaled_sandwich_norm", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "mlp_layer_types": ["dense", "sparse", "sparse"]},
        {"block_type": "pre_norm_residual"},
        {"residual_in_fp32": True},
        {"block_type": "post_norm", "full_attn_alpha_factor": 1.2, "full_attn_beta_factor": 0.8,
         "mlp_alpha_factor": 0.9, "mlp_beta_factor": 1.1},
        {"block_type": "pre_norm_residual", "linear_attn_alpha_factor": 1.2, "linear_attn_beta_factor": 0.8,
         **linear("lightning_attention", **HEADS)},
        {"block_type": "parallel"},
        {"block_type": "parallel_two_norms", "parallel_sum_order": "branches_first"},
        {"block_type": "shortcut", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "mlp_layer_types": ["sparse", "sparse", "dense"]},
        {"block_type": "hyper_connection"},
        {"block_type": "hyper_connection", "hc_mult": 3, "hc_sinkhorn_iters": 7, "hc_eps": 1e-5},
        {"block_type": ["mixer_only", "mlp_only", "pre_norm"]},
    ],
    "position": [
        {},
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}, "rope_interleave": True},
        {"rope_parameters": YARN, "rope_dtype": "float32_trig"},
        {"rope_parameters": {**ROPE, **LONG, "rope_type": "longrope"}},
        {"rope_parameters": {**ROPE, **LLAMA3, "rope_type": "llama3"}, "rope_dtype": "float32_qk"},
        {"no_rope_layers": [1, 0, 1], "rope_parameters": ROPE},
        {
            "no_rope_layers": [0, 1, 0],
            "attn_temperature_layers": "no_rope",
            "attn_scale": 0.3,
            "floor_scale": 3,
            "attn_temperature_offset": 1,
        },
        {"position_embedding_type": "learned", "position_offset": 2, "position_ids_from_mask": True},
        {"position_embedding_type": "sinusoidal"},
        {"position_embedding_type": "sinusoidal", "sinusoid_layout": "closed_halves", "position_offset": 2},
        {"position_embedding_type": "alibi"},
        {"position_embedding_type": "alibi", "alibi_scaled": True, "alibi_dtype": "bfloat16"},
        {
            "position_embedding_type": "relative",
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
        },
        {"position_embedding_type": "transformer_xl"},
        {"position_embedding_type": "none"},
    ],
    "mixer": [
        {},
        {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 4},
        {"layer_types": [SLIDING, FULL, FULL], "sliding_window": 4, "num_kv_shared_layers": 1},
        {"num_kv_shared_layers": 2},
        {"layer_types": [CHUNKED, CHUNKED, FULL], "attention_chunk_size": 4},
        {"layer_types": [SLIDING, CHUNKED, FULL], "sliding_window": 4, "attention_chunk_size": 6},
        {"layer_types": [CHUNKED, SLIDING, CHUNKED], "sliding_window": 6, "attention_chunk_size": 4,
         "per_layer_config": {2: {"attention_chunk_size": 3, "num_key_value_heads": 3}}},
        {"layer_types": [SLIDING] * 3, "sliding_window": 3, "per_layer_config": {1: {"sliding_window": 7}}},
        linear("gated_delta_net", ["hybrid_sliding", CHUNKED, SLIDING], **HEADS, sliding_window=4,
               attention_chunk_size=5),
        {"sparse_attention_pattern": ["strided", "none", "fixed"], "sparse_attention_stride": 3},
        {"sparse_attention_pattern": "banded", "sparse_attention_stride": 3},
        {"use_bidirectional_attention": True},
        LATENT,
        {**LATENT, "q_lora_rank": 18, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "mla_norm_eps": 1e-5},
        {**LATENT, "layer_types": [SLIDING, FULL, FULL], "sliding_window": 4, "scale_attn_by_mscale": False},
        {**LATENT, **INDEXER, "q_lora_rank": 18, "layer_types": [FULL, INDEXED, INDEXED]},
        {
            **LATENT,
            **INDEXER,
            "q_lora_rank": 18,
            "layer_types": [INDEXED] * 3,
            "indexer_types": ["full", "shared", "full"],
            "indexer_rope_interleave": True,
        },
        {**LATENT, **INDEXER, "q_lora_rank": 18, "layer_types": [INDEXED] * 3, "indexer_warmup": True,
         "indexer_loss_coef": 0.1},
        {**{name: LATENT[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")},
         "attention_type": ["latent", "grouped_query", "latent"]},
        linear("gated_delta_net", **HEADS),
        linear("gated_delta_net", [LINEAR] * 3, **HEADS, linear_allow_neg_eigval=True, linear_gate_rank=5),
        linear("kimi_delta_attention", **HEADS, linear_decay_rank=4),
        linear("kimi_delta_attention", **HEADS, linear_decay="bounded_sigmoid", linear_lower_bound=-5.0,
               linear_float32_parameters=True),
        linear("delta_net", **HEADS, linear_bias=True, linear_qk_norm="l2", linear_feature_map="relu"),
        linear("linear_attention", **HEADS, linear_feature_map="elu_plus_one", linear_norm_before_gate=False),
        linear("gated_linear_attention", **HEADS, linear_decay_granularity="head", linear_decay_normalizer=8.0),
        linear("lightning_attention", **HEADS, linear_attention_multiplier=0.5, linear_output_norm="group"),
        linear("mamba2", **STATES, linear_conv_bias=False, time_step_limit=[0.01, 1.0]),
        linear("mamba2", **STATES, linear_in_multiplier=0.8, linear_out_multiplier=1.2,
               linear_section_multipliers=[0.9, 1.1, 0.7, 1.3, 0.8]),
        linear("mamba", **STATES, time_step_rank=5, linear_step_norm="rms_norm", linear_conv_kernel_dim=3),
        linear("rg_lru", linear_num_value_heads=4, linear_value_head_dim=12, linear_output_gate="silu",
               linear_output_norm="head", linear_norm_eps=1e-5, linear_norm_cast="float32"),
        linear("short_conv", [CONV, FULL, CONV], linear_act="silu"),
        linear(["gated_delta_net", None, "mamba2"], **STATES, linear_decay_dtype="activation"),
        linear("mamba2", [HYBRID, LINEAR, HYBRID], **STATES, **SHARED_BLOCKS, shared_attention_adapter_rank=4,
               shared_mlp_adapter_rank=3),
        linear("mamba", [HYBRID, LINEAR, HYBRID], **STATES, **SHARED_BLOCKS | {"num_mem_blocks": 2}),
        linear("mamba2", [HYBRID, HYBRID, FULL], **STATES, attention_in_multiplier=0.9, attention_out_multiplier=1.1),
        {**linear("kimi_delta_attention", [LINEAR, LINEAR, FULL], **HEADS), **LATENT},
    ],
    "attention": [
        {},
        {"value_norm": True, "attention_k_eq_v": True, "qk_norm": "rms_norm"},
        {"attention_bias": True},
        {"attention_out_bias": True, "attention_multiplier": 0.3, "clip_qkv": 1.5, "v_head_dim": 10},
        {"scale_attn_by_inverse_layer_idx": True, "attn_logit_softcapping": 4.0},
        {"qk_norm": "rms_norm"},
        {"qk_norm": "rms_norm", "qk_norm_scope": "full", "qk_norm_eps": 1e-5, "clip_qkv": 1.5,
         "clip_qkv_position": "after_norm"},
        {"qk_norm": "layer_norm", "qk_norm_weight": "per_head", "qk_norm_bias": True},
        {"qk_norm": "rms_norm", "qk_norm_weight": "none", "qk_norm_position": "after_rope", "qk_norm_layers": "rope"},
        {"attention_sinks": "all", "attention_value_scale": 0.7, "v_head_dim": 10},
        {"key_multiplier": 0.6, "qk_norm": "layer_norm", "qk_norm_eps": 0.1},
        {"attn_output_gate": "query"},
        {"attn_output_gate": "elementwise"},
        {"attn_output_gate": "headwise", "attention_upcast": True},
        {"num_key_value_heads": 1, "attention_dropout": 0.2},
        {"per_layer_config": {0: {"num_attention_heads": 4, "head_dim": 8, "qk_norm": "rms_norm"},
                              2: {"attention_bias": True, "rope_parameters": {**ROPE, "rope_theta": 50.0}}}},
    ],
    "mlp": [
        {},
        {"gated_mlp": False, "hidden_act": "relu2", "mlp_bias": True},
        {"gated_mlp": False, "hidden_act": "xielu"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "sigmoid"},
        {"hidden_act": "linear"},
        {"mlp_multipliers": [0.7, 1.3], "mlp_bias": True},
        {"per_layer_config": {1: {"intermediate_size": 30, "norm_eps": 1e-3}, 2: {"hidden_act": "relu"}}},
        {**EXPERTS, "per_layer_config": {2: {"num_experts": 4, "num_experts_per_tok": 3, "n_shared_experts": 1}}},
        EXPERTS,
        {**EXPERTS, "n_shared_experts": 1, "shared_expert_gate": True, "router_aux_loss_coef": 0.1,
         "router_z_loss_coef": 0.01},
        {**EXPERTS, "num_experts": 6, "scoring_func": "sigmoid", "use_score_correction_bias": True, "n_group": 3,
         "topk_group": 2, "group_score": "top2_sum", "group_mask_value": "-inf", "routed_scaling_factor": 2.5,
         "router_dtype": "float32_linear", "router_weights_dtype": "float32"},
        {**EXPERTS, "scoring_func": "sigmoid", "score_after_topk": True, "apply_router_weight_on_input": True,
         "norm_topk_prob": False},
        {**EXPERTS, "scoring_func": "sqrtsoftplus", "norm_topk_eps": 1e-20, "norm_topk_min": 1e-12,
         "swiglu_limit": 3.0, "swiglu_alpha": 1.7, "swiglu_up_offset": 1.0, "expert_bias": True, "router_bias": True},
        {**EXPERTS, "scoring_func": "sparsemixer", "sparsemixer_jitter_eps": 0.05, "router_jitter_noise": 0.1},
        {**EXPERTS, "zero_expert_num": 2, "zero_expert_type": "identity", "norm_topk_prob": False},
        {**EXPERTS, "router_input_norm": True, "router_input_multiplier": 0.5, "router_per_expert_scale": True,
         "n_shared_experts": 2, "shared_expert_intermediate_size": 30,
         "shared_expert_combination_strategy": "average", "output_router_logits": True},
        {**EXPERTS, "moe_latent_size": 16, "gated_mlp": False, "hidden_act": "relu2"},
    ],
    "embedding": [
        {},
        {"tie_word_embeddings": True, "pad_token_id": 0},
        {"embedding_size": 20, "embedding_dropout": 0.1, "residual_dropout": 0.1},
        {"embedding_multiplier": 6.3, "logits_scaling": 3.0},
        {"embedding_multiplier": 6.3, "embedding_multiplier_in_weight_dtype": True, "final_logit_softcapping": 5.0},
        {"lm_head_bias": True, "suppressed_token_ids": [3, 5]},
        {"hidden_size_per_layer_input": 7, "vocab_size_per_layer_input": 103},
    ],
    "training": [
        {},
        {"output_z_loss_coef": 0.1, "loss_chunk_size": 3},
        {"initializer_type": "small", "residual_initializer_type": "depth"},
        {"initializer_type": "fan_in", "residual_initializer_type": "zero", "embedding_initializer_range": 1.0,
         "initializer_cutoff": 3.0, "loss_chunk_size": 64},
    ],
    "stray": [{}] * 9
    + [
        {"num_attention_heads": 5},
        {"sliding_window": 3},
        {"layer_types": [FULL, FULL]},
        {"norm_bias": True},
    ],
}  # fmt: skip
