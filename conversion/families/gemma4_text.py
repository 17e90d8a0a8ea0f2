"""Gemma 4 (Gemma team 2026), text: Gemma 3 with normed values, keys that are values too in full layers, a scalar per
layer; experts beside the MLP (26B-A4B); keys and values shared by the last layers, whose MLPs are twice as wide, and an
embedding per layer (E2B, E4B)."""

from math import sqrt

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .gemma2 import FIELDS as GEMMA2
from .shared_common import restore_window_fields, tiny, window_fields
from .shared_gemma4 import FULL, RULES, SMALL, TINY

PER_LAYER = ("head_dim", "num_key_value_heads", "attention_k_eq_v", "intermediate_size")
ROWS, TOKENS = "hidden_size_per_layer_input", "vocab_size_per_layer_input"
ROUTED = {name: name for name in ("num_experts", "moe_intermediate_size")} | {"top_k_experts": "num_experts_per_tok"}


def derive(theirs: Theirs) -> Keys:
    fields = {"rope_parameters": rope(theirs), "embedding_multiplier": sqrt(theirs.hidden_size)} | window_fields(theirs)
    fields["use_bidirectional_attention"] = theirs.use_bidirectional_attention == "all"
    if getattr(theirs, ROWS, None):
        fields |= {name: getattr(theirs, name) for name in (ROWS, TOKENS)}
    if getattr(theirs, "enable_moe_block", False):
        fields |= {ours: getattr(theirs, name) for name, ours in ROUTED.items()}
        fields |= {"router.input_norm": True, "router.input_multiplier": theirs.hidden_size**-0.5}
        fields |= {"router.per_expert_scale": True, "norm_topk_prob": True, "router.norm_topk_eps": 0.0}
    return fields | per_layer(theirs)


def per_layer(theirs: Theirs) -> Keys:
    """Head size, key-value heads, whether keys are values, and the MLP's width: as in the first layer, and where a
    layer differs."""
    layers, first_shared = [], theirs.num_hidden_layers - theirs.num_kv_shared_layers
    for index, (layer_type, layer) in enumerate(zip(theirs.layer_types, theirs.per_layer_config, strict=True)):
        # A layer that reads the keys and values of another makes none.
        both = theirs.attention_k_eq_v and layer_type == FULL and index < first_shared
        width = theirs.intermediate_size * (2 if theirs.use_double_wide_mlp and index >= first_shared else 1)
        layers.append(dict(zip(PER_LAYER, (layer.head_dim, layer.num_key_value_heads, both, width), strict=True)))
    differing = {i: dict(one.items() - layers[0].items()) for i, one in enumerate(layers) if one != layers[0]}
    return layers[0] | ({"per_layer_config": differing} if differing else {})


def restore(ours: Ours) -> Keys:
    first, last = ours.per_layer_config[0], ours.per_layer_config[-1]
    layers = {layer_type: ours.per_layer_config[ours.layer_types.index(layer_type)] for layer_type in ours.layer_types}
    full, other = layers[FULL], layers.get("sliding_attention", layers[FULL])
    keys = {"head_dim": other.head_dim, "num_key_value_heads": other.num_key_value_heads}
    keys |= {"global_head_dim": full.head_dim, "attention_k_eq_v": full.attention_k_eq_v}
    keys |= {"num_global_key_value_heads": full.num_key_value_heads} if full.attention_k_eq_v else {}
    keys |= {"intermediate_size": first.intermediate_size, ROWS: ours.hidden_size_per_layer_input or 0}
    keys["use_double_wide_mlp"] = last.intermediate_size != first.intermediate_size
    keys |= {TOKENS: ours.vocab_size_per_layer_input} if ours.hidden_size_per_layer_input else {}
    keys |= {"rope_parameters": restore_rope(ours), "enable_moe_block": ours.num_experts is not None}
    keys |= {name: getattr(ours, field) for name, field in ROUTED.items()} if ours.num_experts is not None else {}
    keys |= {"use_bidirectional_attention": "all"} if ours.use_bidirectional_attention else {}
    return keys | restore_window_fields(ours)


FAMILY = Family(
    fields={name: ours for name, ours in GEMMA2.items() if name not in PER_LAYER}
    | {"num_kv_shared_layers": "num_kv_shared_layers"},
    fixed={
        "block_type": "scaled_sandwich_norm", "precision.norm": "scale_then_cast", "qk_norm": "rms_norm",
        "value_norm": True,
        "attention_multiplier": 1.0, "precision.embedding_multiplier_in_weight_dtype": True,
    },
    derive=derive,
    restore=restore,
    rules=RULES,
    tiny=[
        tiny(**TINY, attention_k_eq_v=True, num_global_key_value_heads=3, enable_moe_block=True, num_experts=10,
             top_k_experts=3, moe_intermediate_size=28, layer_types=["sliding_attention", FULL] * 2),
        tiny(**TINY | SMALL, use_double_wide_mlp=True, num_kv_shared_layers=3),
        tiny(**TINY | SMALL, num_kv_shared_layers=2, attention_k_eq_v=True, num_global_key_value_heads=3,
             enable_moe_block=True, num_experts=10, top_k_experts=3, moe_intermediate_size=28),
        tiny(**TINY, attention_bias=True, tie_word_embeddings=False, final_logit_softcapping=9.0),
    ],
)  # fmt: skip
