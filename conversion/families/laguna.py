"""Laguna (Poolside 2026): gates by softplus on what attention gives, per head or per channel; layers with numbers of
heads of their own; each type of layer has a rotation."""

from ..engine.family import Family, Keys, Ours, Theirs, rope
from ..engine.rules import renames
from .shared_common import restore_window, window_fields
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, correction_bias, tiny_experts

HEADS, CAP = "num_attention_heads", "router.logit_softcapping"
SHARED = {f"mlp.shared_expert.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}
GATE = {"self_attn.g_proj": "self_attn.output_gate.g_proj"}
NAMES = (
    "attention_bias", "mlp_layer_types", "num_experts", "moe_intermediate_size", "shared_expert_intermediate_size",
)  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    heads, tables = theirs.num_attention_heads_per_layer, rope(theirs, partial=True)
    usual = theirs.num_attention_heads if theirs.num_attention_heads in heads else heads[0]
    own = {index: {HEADS: count} for index, count in enumerate(heads) if count != usual}
    per_head = theirs.gating in (True, "per-head")
    return window_fields(theirs) | {
        HEADS: usual,
        "per_layer_config": own or None,
        "rope_parameters": {name: tables[name] for name in dict.fromkeys(theirs.layer_types)},
        "attn_output_gate": "headwise_softplus" if per_head else "elementwise_softplus",
        CAP: theirs.moe_router_logit_softcapping or None if "sparse" in theirs.mlp_layer_types else None,
    }


def restore(ours: Ours) -> Keys:
    tables = ours.rope_parameters
    if "rope_type" in tables:
        tables = dict.fromkeys(ours.layer_types, tables)
    return restore_window(ours) | {
        HEADS: ours.num_attention_heads,
        "num_attention_heads_per_layer": [layer.num_attention_heads for layer in ours.per_layer_config],
        "rope_parameters": {name: dict(table) for name, table in tables.items()},
        "gating": "per-head" if ours.attn_output_gate == "headwise_softplus" else "per-element",
        "moe_router_logit_softcapping": getattr(ours, CAP) or 0.0,
    }


TINY = tiny_experts(shared_expert_intermediate_size=36, moe_routed_scaling_factor=1.7)
FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name != HEADS}
    | AUX_LOSS
    | {name: name for name in NAMES}
    | {"moe_routed_scaling_factor": "routed_scaling_factor"},
    fixed={
        "qk_norm": "rms_norm", "scoring_func": "sigmoid", "use_score_correction_bias": True,
        "router.norm_topk_eps": 0.0, "precision.router": "float32_scores", "precision.router_weights": "activation",
    },
    derive=derive,
    restore=restore,
    rules=[*renames(GATE | SHARED), *correction_bias("mlp.experts.e_score_correction_bias"), *QWEN_MOE_RULES],
    tiny=[
        TINY
        | {
            "num_hidden_layers": 4, "sliding_window": 5, "num_attention_heads_per_layer": [6, 4, 4, 6],
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "moe_router_logit_softcapping": 0.6,
        },
        TINY | {"gating": "per-element", "attention_bias": True, "tie_word_embeddings": True},
        TINY
        | {
            "layer_types": ["sliding_attention"] * 3, "sliding_window": 4, "num_attention_heads_per_layer": [8] * 3,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ],
)  # fmt: skip
