"""Qwen1.5-MoE and Qwen2-MoE (Qwen team 2024): Qwen2 with routed experts and one shared expert behind a gate."""

from ..engine.family import Family, Keys, Ours, restore_rope, rope
from ..engine.rules import renames
from .shared_common import restore_window_fields, window_fields
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, normed, restore_stepped, stepped, tiny_experts

SHARED = {"mlp.shared_expert." + f"{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}


def restore(ours: Ours) -> Keys:
    slides = {"use_sliding_window": ours.sliding_window is not None}
    return {"rope_parameters": restore_rope(ours)} | slides | restore_window_fields(ours) | restore_stepped(ours)


FAMILY = Family(
    fields=MOE_FIELDS
    | AUX_LOSS
    | {
        "qkv_bias": "attention_bias", "num_experts": "num_experts", "moe_intermediate_size": "moe_intermediate_size",
        "norm_topk_prob": "norm_topk_prob", "shared_expert_intermediate_size": "shared_expert_intermediate_size",
    },
    fixed={"attention_out_bias": False, "precision.router_weights": "activation", "shared_expert_gate": True},
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs) | stepped(theirs) | normed(theirs),
    restore=restore,
    rules=[*renames(SHARED), *QWEN_MOE_RULES],
    tiny=[
        tiny_experts(head_dim=..., shared_expert_intermediate_size=36, mlp_only_layers=[1]),
        tiny_experts(
            head_dim=..., shared_expert_intermediate_size=36, norm_topk_prob=True, qkv_bias=False,
            num_hidden_layers=4, decoder_sparse_step=2, use_sliding_window=True, sliding_window=5,
            tie_word_embeddings=True, router_aux_loss_coef=0.02,
        ),
    ],
)  # fmt: skip
