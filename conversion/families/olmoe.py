"""OLMoE (Muennighoff et al. 2024): 64 small experts, eight per token; norms over all queries or keys of a token."""

from ..engine.family import Family, Keys, Theirs, restore_rope, rope
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, normed, tiny_experts

FIELDS = (
    MOE_FIELDS | AUX_LOSS | {name: name for name in ("attention_bias", "num_experts", "norm_topk_prob", "clip_qkv")}
)
FIXED = {"qk_norm": "rms_norm", "qk_norm_config.scope": "full", "precision.router_weights": "activation"}
TINY = tiny_experts(head_dim=..., moe_intermediate_size=..., intermediate_size=28)


def derive(theirs: Theirs) -> Keys:
    clip = {"clip_qkv_position": None if theirs.clip_qkv is None else "after_norm"}
    return {"rope_parameters": rope(theirs)} | normed(theirs) | clip


FAMILY = Family(
    fields=FIELDS,
    fixed=FIXED,
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=QWEN_MOE_RULES,
    tiny=[
        TINY,
        TINY
        | {
            "norm_topk_prob": True, "clip_qkv": 0.8, "attention_bias": True, "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6, "router_aux_loss_coef": 0.02,
        },
    ],
)  # fmt: skip
