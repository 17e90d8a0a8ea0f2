"""Gemma 4 (Gemma team 2026), text, of the models whose layers keep keys and values of their own (31B, 26B-A4B): Gemma 3
with normed values, keys that are values too in full layers, a scalar per layer, experts beside the MLP."""

from math import sqrt

from .errors import ConversionError
from .family import Family, restore_rope, rope
from .gemma2 import FIELDS as GEMMA2
from .gemma2 import NORMS
from .rules import Rule, renames
from .rules_common import ROPE_BUFFERS, reach, restore_reach, tiny

# What zoo has no concept for yet, and the value that does without it.
UNKNOWN = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
PER_LAYER = ("head_dim", "num_key_value_heads", "attention_k_eq_v")
FULL = "full_attention"
LAYER = "model.layers.{i}."
EXPERT_NORMS = {
    "post_feedforward_layernorm_1": "mlp_branch_norm", "pre_feedforward_layernorm_2": "moe_norm",
    "post_feedforward_layernorm_2": "moe_output_norm", "router.proj": "moe.gate",
}  # fmt: skip
ROUTED = {"num_experts": "num_experts", "top_k_experts": "num_experts_per_tok"}
ROUTED |= {"moe_intermediate_size": "moe_intermediate_size"}


def derive(theirs):
    for name, without in UNKNOWN.items():
        if getattr(theirs, name):
            raise ConversionError(f"gemma4_text: {name}={getattr(theirs, name)} is not supported, only {without}.")
    fields = {"rope_parameters": rope(theirs), "embedding_multiplier": sqrt(theirs.hidden_size)} | reach(theirs)
    fields["use_bidirectional_attention"] = theirs.use_bidirectional_attention == "all"
    if theirs.enable_moe_block:
        fields |= {ours: getattr(theirs, name) for name, ours in ROUTED.items()}
        fields |= {"router_input_norm": True, "router_input_multiplier": theirs.hidden_size**-0.5}
        fields |= {"router_per_expert_scale": True, "norm_topk_prob": True, "norm_topk_eps": 0.0}
    return fields | per_layer(theirs)


def per_layer(theirs):
    """Head size, key-value heads and whether keys are values: as in the first layer, and where a layer differs."""
    layers = []
    for word, layer in zip(theirs.layer_types, theirs.per_layer_config, strict=True):
        both = theirs.attention_k_eq_v and word == FULL
        layers.append(dict(zip(PER_LAYER, (layer.head_dim, layer.num_key_value_heads, both), strict=True)))
    differing = {i: dict(one.items() - layers[0].items()) for i, one in enumerate(layers) if one != layers[0]}
    return layers[0] | ({"per_layer_config": differing} if differing else {})


def restore(ours):
    layers = dict(zip(ours.layer_types, ours.per_layer_config, strict=True))
    full, other = layers[FULL], layers.get("sliding_attention", layers[FULL])
    keys = {"head_dim": other.head_dim, "num_key_value_heads": other.num_key_value_heads}
    keys |= {"global_head_dim": full.head_dim, "attention_k_eq_v": full.attention_k_eq_v}
    keys |= {"num_global_key_value_heads": full.num_key_value_heads} if full.attention_k_eq_v else {}
    keys |= {"rope_parameters": restore_rope(ours), "enable_moe_block": ours.num_experts is not None} | UNKNOWN
    keys |= {name: getattr(ours, field) for name, field in ROUTED.items()} if ours.num_experts is not None else {}
    keys |= {"use_bidirectional_attention": "all"} if ours.use_bidirectional_attention else {}
    return keys | restore_reach(ours)


TINY = {"hidden_size_per_layer_input": 0, "sliding_window": 5, "global_head_dim": 20, "num_hidden_layers": 4}
FAMILY = Family(
    fields={name: ours for name, ours in GEMMA2.items() if name not in PER_LAYER},
    fixed={
        "block_type": "scaled_sandwich_norm", "norm_cast": "scale_then_cast", "qk_norm": "rms_norm", "value_norm": True,
        "attention_multiplier": 1.0, "embedding_multiplier_in_weight_dtype": True,
    },
    derive=derive,
    restore=restore,
    rules=[
        *renames(NORMS | EXPERT_NORMS), *ROPE_BUFFERS, Rule(LAYER + "router.scale", LAYER + "moe.gate.norm.weight"),
        Rule(LAYER + "router.per_expert_scale", LAYER + "moe.gate.per_expert_scale"),
        Rule(LAYER + "experts.{gate_up_proj|down_proj}", LAYER + "moe.experts.{gate_up_proj|down_proj}"),
    ],
    tiny=[
        tiny(**TINY, attention_k_eq_v=True, num_global_key_value_heads=3, enable_moe_block=True, num_experts=10,
             top_k_experts=3, moe_intermediate_size=28, layer_types=["sliding_attention", FULL] * 2),
        tiny(**TINY, attention_bias=True, tie_word_embeddings=False, final_logit_softcapping=9.0),
    ],
)  # fmt: skip
