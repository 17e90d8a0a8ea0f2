"""LongCat-Flash (Meituan 2025, arXiv 2509.01322): two attentions and two dense MLPs per layer, experts beside them that
join later, and experts that cost nothing. One layer there is two here."""

from typing import Any

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Keep, Rule, StackExperts
from .shared_latent import LATENT, LATENT_FIELDS, SHARING, tiny_latent

LAYER = "model.layers.{i}."
EXPERTS, OURS = LAYER + "mlp.experts.", LAYER + "moe.experts."
HALF = (lambda v: {"i": 2 * v["i"] + v["s"]}, lambda v: {"i": v["i"] // 2, "s": v["i"] % 2})
FIRST = (lambda v: {"i": 2 * v["i"]}, lambda v: {"i": v["i"] // 2})
# Their module of each half -> ours.
HALVES = {
    "self_attn": "self_attn",
    "mlps": "mlp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
}
FUSED = "{gate_up_proj|down_proj}"


def derive(theirs: Theirs) -> Keys:
    return {
        "num_hidden_layers": 2 * theirs.num_layers,
        "mlp_layer_types": ["sparse", "dense"] * theirs.num_layers,
        "zero_expert_num": theirs.zero_expert_num or None,
        "rope_parameters": rope(theirs),
    }


def restore(ours: Ours) -> Keys:
    layers, zero = ours.num_hidden_layers // 2, ours.zero_expert_num or 0
    # What rotates has the width that their config calls head_dim.
    keys = {"num_layers": layers, "zero_expert_num": zero, "head_dim": ours.qk_rope_head_dim}
    return keys | {"rope_parameters": restore_rope(ours)}


def tiny_longcat(**changes: Any) -> Keys:
    sizes = {"num_hidden_layers": ..., "num_layers": 2, "intermediate_size": ..., "ffn_hidden_size": 80, "head_dim": 6}
    experts = {"n_routed_experts": 10, "zero_expert_num": 5, "moe_topk": 3, "expert_ffn_hidden_size": 28}
    return tiny_latent(**(sizes | experts | changes))


FAMILY = Family(
    fields={name: ours for name, ours in LATENT_FIELDS.items() if name != "num_hidden_layers"}
    | {
        "n_routed_experts": SHARING["n_routed_experts"], "output_router_logits": "output_router_logits",
        "num_experts_per_tok": "num_experts_per_tok", "expert_ffn_hidden_size": "moe_intermediate_size",
        "routed_scaling_factor": "routed_scaling_factor",
    },
    fixed=LATENT
    | {
        "block_type": "shortcut", "rope_interleave": True, "mla_config.scale_q_lora": True,
        "mla_config.scale_kv_lora": True,
        "use_score_correction_bias": True, "norm_topk_prob": False, "precision.router": "float32_linear",
    },
    derive=derive,
    restore=restore,
    rules=[
        Keep("model.mtp.{*}"),
        Keep(LAYER + "mlp.router.classifier.bias"),
        # transformers has, and writes, two matrices for experts that have no weights.
        Keep(EXPERTS + "{e}.{gate_proj|up_proj}.weight", where=lambda ctx: ctx.values["e"] >= ctx.config.num_experts),
        *(Rule(f"{LAYER}{a}.{{s}}.{{*}}", f"{LAYER}{b}.{{*}}", index=HALF) for a, b in HALVES.items()),
        Rule([EXPERTS + "{e}.gate_proj.weight", EXPERTS + "{e}.up_proj.weight"], OURS + "gate_up_proj",
             StackExperts(), index=FIRST),
        Rule(EXPERTS + "{e}.down_proj.weight", OURS + "down_proj", StackExperts(), index=FIRST),
        Rule(EXPERTS + FUSED, OURS + FUSED, index=FIRST),
        Rule(LAYER + "mlp.router.classifier.weight", LAYER + "moe.gate.weight", index=FIRST),
        Rule(LAYER + "mlp.router.e_score_correction_bias", LAYER + "moe.gate.e_score_correction_bias", index=FIRST),
    ],
    tiny=[tiny_longcat(), tiny_longcat(zero_expert_num=0, attention_bias=True, tie_word_embeddings=True)],
)  # fmt: skip
