"""Qwen3.5-35B-A3B, 122B-A10B and 397B-A17B (Qwen team 2026), the text model: Qwen3.5 with experts in every layer."""

from ..engine.family import Family
from ..engine.rules import renames
from .qwen2_moe import SHARED
from .qwen3_5_text import OTHER_LAYERS, TEXT_RULES, WRAPPED
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, tiny_experts
from .shared_linear import GATED_HYBRID, TINY_DELTA, gated_hybrid, restore_gated_hybrid

TINY = TINY_DELTA | {"shared_expert_intermediate_size": 36, "intermediate_size": ...}

FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name != "intermediate_size"}
    | AUX_LOSS
    | {
        name: name
        for name in (
            "attention_bias", "num_experts", "moe_intermediate_size", "shared_expert_intermediate_size",
        )
    },
    fixed=GATED_HYBRID
    | {
        "norm_topk_prob": True, "router.norm_topk_eps": 0.0, "precision.router_weights": "activation",
        "shared_expert_gate": True,
    },
    derive=gated_hybrid,
    restore=restore_gated_hybrid,
    also_prefixes=WRAPPED,
    rules=[*TEXT_RULES, *renames(SHARED), *QWEN_MOE_RULES],
    tiny=[tiny_experts(**TINY), tiny_experts(**TINY | OTHER_LAYERS, router_aux_loss_coef=0.02)],
)  # fmt: skip
