"""GLM-4.5 to 4.7 (Zhipu AI 2025): sigmoid routing with a selection bias, half of every head rotates, norms on queries
and keys."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import PREDICTION_LAYERS
from .shared_experts import (
    GROUPS,
    QWEN_MOE_RULES,
    SIGMOID_FIELDS,
    SIGMOID_ROUTER,
    dense_first,
    leading_dense,
    tiny_experts,
)

FIELDS = SIGMOID_FIELDS | {
    "attention_bias": "attention_bias", "n_routed_experts": "num_experts", "n_shared_experts": "n_shared_experts",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    mlps = dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)
    norm = "rms_norm" if theirs.use_qk_norm else None
    return {"rope_parameters": rope(theirs, partial=True), "mlp_layer_types": mlps, "qk_norm": norm}


def restore(ours: Ours) -> Keys:
    norm = {"use_qk_norm": ours.qk_norm is not None}
    return {"rope_parameters": restore_rope(ours), "first_k_dense_replace": leading_dense(ours)} | norm


TINY = tiny_experts(num_experts=..., n_routed_experts=10, n_shared_experts=2, routed_scaling_factor=1.7)

FAMILY = Family(
    fields=FIELDS,
    fixed=SIGMOID_ROUTER | {"attention_out_bias": False},
    derive=derive,
    restore=restore,
    rules=[*PREDICTION_LAYERS, *QWEN_MOE_RULES],
    tiny=[
        TINY | {"use_qk_norm": True, "attention_bias": True},
        TINY
        | GROUPS
        | {"norm_topk_prob": False, "first_k_dense_replace": 2, "tie_word_embeddings": True, "n_shared_experts": 1},
    ],
)
