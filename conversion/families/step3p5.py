"""The text model of Step 3.5 and 3.7 Flash (StepFun 2026): windows with heads of their own, a gate per head, sigmoid
routing; in some layers what experts, shared experts or a dense MLP multiply is clamped behind the activation."""

from ..engine.family import Family, Keys, Ours, Theirs, rope
from ..engine.rules import Concat, Rule, renames
from .shared_common import LLAMA_RULES, PREDICTION_LAYERS, restore_window_fields, window_fields
from .shared_experts import MOE_FIELDS, correction_bias

HEADS, SLIDING, FULL = "num_attention_heads", "sliding_attention", "full_attention"
LIMIT, SHARED, DENSE = "swiglu_limit", "swiglu_config.shared_limit", "swiglu_config.dense_limit"
MOE, EXPERTS = "model.layers.{i}.moe.", "model.layers.{i}.mlp.experts."


def limits(theirs: Theirs, index: int) -> Keys:
    """The bounds of layer `index`; both of their lists say 0 or None for none."""
    lists = (theirs.swiglu_limits, theirs.swiglu_limits_shared)
    routed, other = (said[index] or None if said else None for said in lists)
    if theirs.mlp_layer_types[index] == "dense":
        return {DENSE: other} if other else {}
    return ({LIMIT: routed} if routed else {}) | ({} if routed == other else {SHARED: other or 0})


def derive(theirs: Theirs) -> Keys:
    types, heads = theirs.layer_types, [layer.num_attention_heads for layer in theirs.per_layer_config]
    usual = heads[types.index(FULL) if FULL in types else 0]
    own = [limits(theirs, index) for index in range(len(types))]
    clamps = True if any(own) else None
    own = [one | ({HEADS: count} if count != usual else {}) for one, count in zip(own, heads, strict=True)]
    tables = rope(theirs, partial=True)
    return window_fields(theirs) | {
        HEADS: usual,
        "per_layer_config": {index: one for index, one in enumerate(own) if one} or None,
        "rope_parameters": {kind: tables[kind] for kind in dict.fromkeys(types)},
        "swiglu_config.clamp_behind_activation": clamps,
        "attention_multiplier": theirs.query_pre_attn_scalar**-0.5,
    }


def restore(ours: Ours) -> Keys:
    layers = list(zip(ours.mlp_layer_types, ours.per_layer_config, strict=True))
    heads = {kind: layer.num_attention_heads for kind, (_, layer) in zip(ours.layer_types, layers, strict=True)}
    routed = [layer.swiglu_limit if mlp == "sparse" else None for mlp, layer in layers]
    own = [layer.swiglu_config["dense_limit" if mlp == "dense" else "shared_limit"] for mlp, layer in layers]
    tables, scale = ours.rope_parameters, ours.attention_multiplier
    tables = dict.fromkeys(ours.layer_types, tables) if "rope_type" in tables else tables
    usual = heads.get(FULL, heads.get(SLIDING))
    window = {HEADS: heads.get(SLIDING, usual)}
    return restore_window_fields(ours) | {
        HEADS: usual,
        "num_sliding_attention_heads": window[HEADS],
        "per_layer_config": {str(i): window for i, kind in enumerate(ours.layer_types) if kind == SLIDING},
        "rope_parameters": {name: dict(table) for name, table in tables.items()},
        "query_pre_attn_scalar": ours.head_dim if scale is None else round(scale**-2, 6),
        "swiglu_limits": routed,
        "swiglu_limits_shared": [limit if one is None else one or None for limit, one in zip(routed, own, strict=True)],
    }


FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name != HEADS}
    | {name: name for name in ("attention_bias", "mlp_bias", "mlp_layer_types", "moe_intermediate_size")}
    | {
        "n_routed_experts": "num_experts", "share_expert_dim": "shared_expert_intermediate_size",
        "moe_router_scaling_factor": "routed_scaling_factor",
    },
    fixed={
        "norm_unit_offset": True, "qk_norm": "rms_norm", "attn_output_gate": "headwise", "scoring_func": "sigmoid",
        "use_score_correction_bias": True, "router.norm_topk_eps": 0.0, "precision.router": "float32_scores",
    },
    derive=derive,
    restore=restore,
    rules=[
        *PREDICTION_LAYERS, *correction_bias("moe.router_bias"),
        *renames({"self_attn.g_proj": "self_attn.output_gate.g_proj", "moe.gate": "mlp.gate"}),
        Rule([MOE + "gate_proj.weight", MOE + "up_proj.weight"], EXPERTS + "gate_up_proj", Concat(parts=2, dim=1)),
        Rule(MOE + "down_proj.weight", EXPERTS + "down_proj"),
        *renames({f"share_expert.{x}": f"mlp.shared_experts.{x}" for x in ("gate_proj", "up_proj", "down_proj")}),
        *LLAMA_RULES,
    ],
)  # fmt: skip
