"""Qwen3-30B-A3B and 235B-A22B (Yang et al. 2025): Qwen3 with many small experts and none that is shared."""

from ..engine.family import Family, Keys, Ours, restore_rope, rope
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, normed, restore_stepped, stepped, tiny_experts


def restore(ours: Ours) -> Keys:
    slides = {"use_sliding_window": ours.sliding_window is not None}
    return {"rope_parameters": restore_rope(ours)} | slides | restore_stepped(ours)


FAMILY = Family(
    fields=MOE_FIELDS
    | AUX_LOSS
    | {
        name: name
        for name in (
            "attention_bias", "num_experts", "moe_intermediate_size", "norm_topk_prob", "sliding_window",
        )
    },
    fixed={"qk_norm": "rms_norm", "precision.router_weights": "activation"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | stepped(theirs) | normed(theirs),
    restore=restore,
    rules=QWEN_MOE_RULES,
    tiny=[
        tiny_experts(norm_topk_prob=True),
        tiny_experts(
            mlp_only_layers=[0], attention_bias=True, use_sliding_window=True, sliding_window=5,
            tie_word_embeddings=True, rms_norm_eps=1e-5, router_aux_loss_coef=0.02,
        ),
    ],
)  # fmt: skip
