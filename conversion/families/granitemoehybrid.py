"""Granite 4 (IBM 2025): Mamba-2 layers and a few of attention, mostly without positions, with Granite's multipliers; a
shared expert in every layer, beside routed ones or alone."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.ops import Context
from ..engine.rules import Rule, Split
from .granite import FIELDS
from .granite import derive as granite_scale
from .granitemoe import SCALES
from .granitemoe import TINY as GRANITE_TINY
from .granitemoeshared import SHARED_RULES
from .shared_experts import AUX_LOSS
from .shared_state_space import LAYER, duality, mixer_rules, restore_duality

SHARED, MLP = LAYER + "shared_mlp.", LAYER + "mlp."
ROUTED = {"num_local_experts": "num_experts"} | {
    name: name for name in ("num_experts_per_tok", "output_router_logits", *AUX_LOSS)
}


def derive(theirs: Theirs) -> Keys:
    fields = {"attention_multiplier": granite_scale(theirs)["attention_multiplier"]} | duality(theirs)
    rotates = theirs.position_embedding_type == "rope"
    fields |= {"rope_parameters": rope(theirs)} if rotates else {"position_embedding_type": "none"}
    if fields.get("linear_attention_type"):
        fields["linear_attn_config.act"] = theirs.hidden_act
    width = theirs.shared_intermediate_size
    if not theirs.num_local_experts:
        return fields | {"intermediate_size": width}
    fields |= {ours: getattr(theirs, name) for name, ours in ROUTED.items()}
    fields |= {"router.score_after_topk": True, "precision.router_weights": "activation"}
    return fields | {"shared_expert_intermediate_size": width}


def restore(ours: Ours) -> Keys:
    rotates = ours.position_embedding_type == "rope"
    keys = {"position_embedding_type": "rope" if rotates else None, "layer_types": list(ours.layer_types)}
    keys |= {"rope_parameters": restore_rope(ours)} if rotates else {}
    keys |= {"attention_multiplier": ours.attention_scaling(0)} | (restore_duality(ours) or {"mamba_n_heads": 1})
    if ours.num_experts is None:
        return keys | {"num_local_experts": 0, "shared_intermediate_size": ours.intermediate_size}
    keys |= {name: getattr(ours, field) for name, field in ROUTED.items()}
    return keys | {"shared_intermediate_size": ours.shared_expert_intermediate_size}


def is_dense(ctx: Context) -> bool:
    return ctx.layer_entry("mlp_layer_types") == "dense"


TINY = GRANITE_TINY | {
    "num_hidden_layers": 4, "mamba_n_heads": 8, "mamba_d_head": 12, "mamba_n_groups": 2, "mamba_d_state": 10,
 "shared_intermediate_size": 36,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}  # fmt: skip
FAMILY = Family(
    fields={name: ours for name, ours in FIELDS.items() if name != "mlp_bias"},
    derive=derive,
    restore=restore,
    rules=[
        *mixer_rules(LAYER + "mamba."),
        Rule(SHARED + "input_linear.weight", [f"{MLP}{x}_proj.weight" for x in ("gate", "up")], Split(parts=2),
             where=is_dense),
        Rule(SHARED + "output_linear.weight", MLP + "down_proj.weight", where=is_dense),
        *SHARED_RULES,
    ],
    tiny=[
        TINY | SCALES,
        TINY
        | {"num_local_experts": 0, "mamba_conv_bias": False, "mamba_proj_bias": True, "attention_bias": True,
           "tie_word_embeddings": True, "position_embedding_type": "rope", "mamba_d_conv": 3, "rms_norm_eps": 1e-3},
        TINY | {"layer_types": ["full_attention"] * 4, "num_local_experts": 0, "position_embedding_type": "rope"},
        TINY | {"router_aux_loss_coef": 0.02, "mamba_expand": 1, "mamba_n_heads": 4, "mamba_n_groups": 1},
    ],
)  # fmt: skip
