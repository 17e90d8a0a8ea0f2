"""MiniMax-M2 (MiniMax 2025): Mixtral's experts under sigmoid routing with a selection bias; norms over all queries or
keys of a token; part of a head rotates."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MIXTRAL_RULES, MOE_FIELDS, correction_bias, tiny_experts

NAME = "e_score_correction_bias"
TINY = tiny_experts(moe_intermediate_size=..., intermediate_size=28)

FAMILY = Family(
    fields=MOE_FIELDS | AUX_LOSS | {"num_local_experts": "num_experts", "router_jitter_noise": "router.jitter_noise"},
    fixed={
        "scoring_func": "sigmoid", "use_score_correction_bias": True, "router.norm_topk_eps": 0.0,
        "qk_norm": "rms_norm", "qk_norm_config.scope": "full",
    },
    derive=lambda theirs: {"rope_parameters": rope(theirs, partial=True)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[*correction_bias(f"block_sparse_moe.{NAME}", f"mlp.{NAME}"), *MIXTRAL_RULES, *LLAMA_RULES],
    tiny=[
        TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        TINY | {"rotary_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "router_jitter_noise": 0.1},
    ],
)  # fmt: skip
