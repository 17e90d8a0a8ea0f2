"""Nemotron-H and Nemotron 3 (NVIDIA 2025): each layer is one thing, a Mamba-2 mixer, attention without positions, an
MLP without a gate, or experts."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Rule, Stack
from .shared_common import tiny
from .shared_experts import EXPERTS, MTP_HEADS, SIGMOID_NAMES, SIGMOID_ROUTER
from .shared_state_space import (
    LAYER,
    PURE_NAMES,
    SINGLE_NORMS,
    SINGLE_PARTS,
    duality,
    mixer_rules,
    restore_duality,
    restore_single_blocks,
    single_blocks,
    with_fields,
)

SSD = {
    "mamba_num_heads": "linear_num_value_heads", "mamba_head_dim": "linear_value_head_dim",
    "n_groups": "linear_num_key_heads", "ssm_state_size": "linear_key_head_dim",
    "conv_kernel": "linear_conv_kernel_dim", "use_conv_bias": "linear_attn_config.conv_bias",
    "use_bias": "linear_attn_config.bias", "mamba_hidden_act": "linear_attn_config.act",
}  # fmt: skip
SHARED_WIDTH = "shared_expert_intermediate_size"
ROUTED = {name: name for name in (*SIGMOID_NAMES, "num_experts_per_tok", "moe_latent_size", "output_router_logits")}
ROUTED["n_routed_experts"], ROUTED["moe_shared_expert_intermediate_size"] = "num_experts", SHARED_WIDTH
MLP = LAYER + "mlp."


def derive(theirs: Theirs) -> Keys:
    fields = duality(theirs, SSD) | single_blocks(theirs.layer_types)
    if "linear_attention_type" in fields:
        # Its class bounds the steps by what initialises them, not by `time_step_limit`.
        fields["linear_attn_config.time_step_limit"] = [theirs.time_step_min, None]
    if "sparse" in fields["mlp_layer_types"]:
        fields |= {ours: getattr(theirs, name) for name, ours in ROUTED.items() if hasattr(theirs, name)}
        fields |= SIGMOID_ROUTER | {"n_shared_experts": 1}
    return fields


def restore(ours: Ours) -> Keys:
    keys = {"layers_block_type": restore_single_blocks(ours)} | restore_duality(ours, SSD)
    if "time_step_limit" in keys:
        keys["time_step_min"] = keys.pop("time_step_limit")[0]
    if ours.num_experts is not None:
        keys |= {name: getattr(ours, field) for name, field in ROUTED.items()}
    return keys


TINY = tiny(
    **EXPERTS, head_dim=20, num_hidden_layers=5, mamba_num_heads=7, mamba_head_dim=12, n_groups=1, ssm_state_size=10,
    n_routed_experts=10, moe_shared_expert_intermediate_size=36,
    layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
)  # fmt: skip
FAMILY = Family(
    fields=with_fields(
        {"layer_norm_epsilon": "norm_eps", "mlp_hidden_act": "hidden_act", "mlp_bias": "mlp_bias"}, ["hidden_act"]
    ),
    fixed={"position_embedding_type": "none", "precision.norm": "scale_then_cast", "gated_mlp": False},
    derive=derive, restore=restore,
    rules=[
        *PURE_NAMES, *MTP_HEADS, *SINGLE_NORMS,
        Rule(LAYER + "mixer.experts.{e}.up_proj.weight", MLP + "experts.up_proj", Stack()),
        Rule(LAYER + "mixer.experts.{e}.down_proj.weight", MLP + "experts.down_proj", Stack()),
        *mixer_rules(LAYER + "mixer."), *SINGLE_PARTS,
    ],
    prefixes={"backbone.": "model."},
    tiny=[
        TINY,
        TINY
        | {"n_groups": 2, "mamba_num_heads": 8, "use_bias": True, "use_conv_bias": False, "mlp_bias": True,
           "conv_kernel": 3, "layer_norm_epsilon": 1e-3, "moe_latent_size": 20, "n_group": 5, "topk_group": 2,
           "norm_topk_prob": False, "routed_scaling_factor": 1.7, "time_step_min": 1e-6},
        TINY | {"layers_block_type": ["full_attention", "mlp", "linear_attention"], "mlp_hidden_act": "gelu"},
        TINY | {"layers_block_type": ["full_attention", "moe"]},
    ],
)  # fmt: skip
