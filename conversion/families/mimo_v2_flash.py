"""MiMo-V2-Flash (Xiaomi 2025): sliding layers with sinks and twice the key-value heads, full ones every sixth.

Values are narrower than keys and are scaled before they are cached; each kind of layer has a rotation of its own, over
a third of the head. Routing is DeepSeek-V3's.
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule
from .shared_common import window_fields
from .shared_experts import (
    GROUPS,
    MTP_HEADS,
    QWEN_MOE_RULES,
    SIGMOID_FIELDS,
    SIGMOID_ROUTER,
    restore_set_window,
    tiny_experts,
)


def derive(theirs: Theirs) -> Keys:
    layer_types, heads = theirs.layer_types, theirs.num_key_value_heads
    slides = [index for index, kind in enumerate(layer_types) if kind == "sliding_attention"]
    tables = {kind: {"partial_rotary_factor": 0.334} | table for kind, table in rope(theirs, partial=True).items()}
    fields = {"rope_parameters": {kind: tables[kind] for kind in tables if kind in layer_types}} | window_fields(theirs)
    fields["attention_sinks"] = "sliding_attention" if slides else None
    if len(slides) == len(layer_types):
        return fields | {"num_key_value_heads": 2 * heads}
    return fields | ({"per_layer_config": {i: {"num_key_value_heads": 2 * heads} for i in slides}} if slides else {})


def restore(ours: Ours) -> Keys:
    layers = zip(ours.layer_types, ours.per_layer_config, strict=True)
    heads = {kind: layer.num_key_value_heads for kind, layer in layers}
    count = heads.get("full_attention") or heads["sliding_attention"] // 2
    return {"rope_parameters": restore_rope(ours), "num_key_value_heads": count} | restore_set_window(ours)


TINY = tiny_experts(num_experts=..., n_routed_experts=10, num_key_value_heads=1, v_head_dim=10)
TABLE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
FAMILY = Family(
    fields={name: ours for name, ours in SIGMOID_FIELDS.items() if name != "num_key_value_heads"}
    | {
        "n_routed_experts": "num_experts", "mlp_layer_types": "mlp_layer_types", "attention_bias": "attention_bias",
        "v_head_dim": "v_head_dim", "attention_value_scale": "attention_value_scale",
    },
    fixed=SIGMOID_ROUTER | {"attention_out_bias": False},
    derive=lambda theirs: {"num_key_value_heads": theirs.num_key_value_heads} | derive(theirs),
    restore=restore,
    rules=[
        *MTP_HEADS,
        Rule("model.layers.{i}.self_attn.attention_sink_bias", "model.layers.{i}.self_attn.sinks"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        TINY | {"num_hidden_layers": 7, "sliding_window": 5},
        TINY
        | GROUPS
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4,
            "attention_bias": True, "tie_word_embeddings": True, "norm_topk_prob": False, "v_head_dim": 14,
            "mlp_layer_types": ["sparse", "dense", "sparse"], "attention_value_scale": 1.3,
            "rope_parameters": {"full_attention": TABLE, "sliding_attention": TABLE | {"rope_theta": 50.0}},
        },
        TINY | {"layer_types": ["full_attention"] * 3, "attention_value_scale": None},
    ],
)  # fmt: skip
