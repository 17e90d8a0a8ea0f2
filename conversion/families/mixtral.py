"""Mixtral 8x7B and 8x22B (Jiang et al. 2024): Mistral with eight experts, two per token, in every layer."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MIXTRAL_RULES, MOE_FIELDS, tiny_experts

FAMILY = Family(
    fields=MOE_FIELDS
    | AUX_LOSS
    | {
        "num_local_experts": "num_experts", "sliding_window": "sliding_window",
        "router_jitter_noise": "router.jitter_noise",
    },
    fixed={"norm_topk_prob": True, "router.norm_topk_eps": 0.0},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[*MIXTRAL_RULES, *LLAMA_RULES],
    tiny=[
        tiny_experts(moe_intermediate_size=..., intermediate_size=28, sliding_window=5),
        tiny_experts(
            moe_intermediate_size=..., intermediate_size=28, tie_word_embeddings=True, rms_norm_eps=1e-6,
            router_jitter_noise=0.1, router_aux_loss_coef=0.02,
        ),
    ],
)  # fmt: skip
