"""Jamba (Lieber et al. 2024): Mamba layers with norms on time steps, B and C, one of attention without positions in
every few, experts in every other."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .shared_common import expert_rules, tiny
from .shared_experts import AUX_LOSS, MOE_FIELDS
from .shared_state_space import (
    HYBRID_RULES,
    LAYER,
    expansion,
    mixer_rules,
    periodic,
    restore_periodic,
)

SCAN = {
    "mamba_d_state": "linear_key_head_dim", "mamba_d_conv": "linear_conv_kernel_dim",
    "mamba_dt_rank": "linear_attn_config.time_step_rank", "mamba_conv_bias": "linear_attn_config.conv_bias",
    "mamba_proj_bias": "linear_attn_config.bias",
    "hidden_act": "linear_attn_config.act",
}  # fmt: skip
NORMS = {f"{name}_layernorm": f"{name}_norm" for name in ("dt", "b", "c")}
FEED, MLP = LAYER + "feed_forward.", LAYER + "mlp."
EXPERTS = ("num_experts", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef")


def derive(theirs: Theirs) -> Keys:
    count = theirs.num_hidden_layers
    fields = {"layer_types": list(theirs.layer_types)}
    if "linear_attention" in theirs.layer_types:
        fields |= {
            "linear_attention_type": "mamba",
            "linear_attn_config.step_norm": "rms_norm",
            "linear_num_value_heads": 1,
        }
        fields |= {"linear_value_head_dim": theirs.mamba_expand * theirs.hidden_size}
        fields |= {ours: getattr(theirs, name) for name, ours in SCAN.items()}
    sparse = [selected and theirs.num_experts > 1 for selected in periodic(theirs, "expert", count)]
    if any(sparse):
        fields |= {"mlp_layer_types": ["sparse" if one else "dense" for one in sparse]}
        fields |= {"norm_topk_prob": False, "precision.router_weights": "activation"}
        fields |= {name: getattr(theirs, name) for name in EXPERTS}
    return fields


def restore(ours: Ours) -> Keys:
    keys = restore_periodic([layer_type == "full_attention" for layer_type in ours.layer_types], "attn")
    keys |= restore_periodic([mlp == "sparse" for mlp in ours.mlp_layer_types], "expert")
    if ours.linear_attention_type is not None:
        keys |= {name: getattr(ours, field) for name, field in SCAN.items()} | {"mamba_expand": expansion(ours)}
    if ours.num_experts is None:
        return keys | {"num_experts": 1}
    return keys | {name: getattr(ours, name) for name in EXPERTS}


TINY = tiny(
    head_dim=..., num_hidden_layers=4, mamba_d_state=10, mamba_dt_rank=7, num_experts=5, num_experts_per_tok=2,
    attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
)  # fmt: skip
FAMILY = Family(
    fields={name: ours for name, ours in (MOE_FIELDS | AUX_LOSS).items() if name not in EXPERTS},
    fixed={"position_embedding_type": "none"},
    derive=derive,
    restore=restore,
    rules=[
        *mixer_rules(LAYER + "mamba.", names=NORMS),
        *expert_rules(FEED + "experts.{e}."),
        *renames({"router": "gate"}, FEED, MLP),
        *HYBRID_RULES,
    ],
    tiny=[
        TINY,
        TINY
        | {"mamba_conv_bias": False, "mamba_proj_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
           "mamba_d_conv": 3, "mamba_expand": 1, "expert_layer_period": 3, "router_aux_loss_coef": 0.02},
        TINY | {"num_experts": 1, "num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 0},
    ],
)  # fmt: skip
