"""DeepSeek-V4 Flash and Pro (DeepSeek-AI 2026): one key a token that is its value too, rotated back on the output; a
window beside compressed entries; hyper-connections; experts by token id in the first layers.

transformers saves the published names behind `model.`, and the embedding under its own.
"""

from ..engine.family import Family
from ..engine.rules import Keep, Rule
from .shared_compressed import COMPRESSED_RULES, HEAVY, SLIDING, SPARSE, TINY, YARN, derive, restore
from .shared_experts import AUX_LOSS, MOE_FIELDS

SAME = (
    "sliding_window", "swiglu_limit", "scoring_func", "routed_scaling_factor", "moe_intermediate_size", "hc_mult",
    "hc_sinkhorn_iters", "hc_eps",
)  # fmt: skip

FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name not in ("intermediate_size", "num_key_value_heads")}
    | AUX_LOSS
    | {name: name for name in SAME}
    | {"n_routed_experts": "num_experts", "q_lora_rank": "mla_config.query_rank"}
    | {"o_lora_rank": "mla_config.output_rank", "o_groups": "mla_config.output_groups"},
    fixed={
        "num_key_value_heads": 1, "attention_k_eq_v": True, "position_config.rope_values": True,
        "position_config.rope_channels": "last", "rope_interleave": True, "precision.rope": "float32_qk",
        "qk_norm": "rms_norm", "qk_norm_config.weight": "keys", "precision.norm": "scale_then_cast",
        "attention_sinks": "all", "block_type": "hyper_connection", "n_shared_experts": 1, "norm_topk_prob": True,
        "use_score_correction_bias": True, "precision.router": "activation",
    },
    derive=derive,
    restore=restore,
    rules=[
        Keep("mtp.{*}"),
        Rule("head.weight", "lm_head.weight"),
        *COMPRESSED_RULES,
    ],
    also_prefixes={
        "layers.": "model.layers.", "embed.": "model.embed_tokens.", "norm.": "model.norm.",
        "hc_head_": "model.hc_head.hc_",
    },
    tiny=[
        TINY | {
            "layer_types": [SLIDING, SPARSE, HEAVY], "num_hash_layers": 2,
            "compress_rates": {SPARSE: 3, HEAVY: 8}, "rope_parameters": YARN, "compress_rope_theta": 700.0,
        },
        TINY | {
            "layer_types": [HEAVY, SPARSE, SPARSE], "num_hash_layers": 0, "tie_word_embeddings": True,
            "compress_rates": {SPARSE: 4, HEAVY: 7}, "index_topk": 50, "routed_scaling_factor": 0.7,
            "scoring_func": "sigmoid", "rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0, "index_head_dim": 14,
        },
        TINY | {"layer_types": [SLIDING] * 3, "num_hash_layers": 3, "hc_sinkhorn_iters": 3, "o_groups": 3},
    ],
)  # fmt: skip
