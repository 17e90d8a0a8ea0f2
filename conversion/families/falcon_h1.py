"""Falcon-H1 (TII 2025, arXiv 2507.22448): attention and a Mamba-2 mixer side by side in every layer, with constant
multipliers (muP) wherever something is projected."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..errors import ConversionError
from .shared_common import tiny
from .shared_state_space import (
    HYBRID_RULES,
    LAYER,
    MIXER,
    SSD_FIELDS,
    TINY_SSD,
    inner_width,
    mixer_rules,
    restore_step_limit,
    step_limit,
    with_fields,
)

MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier", "key_multiplier": "mup_multipliers.key",
    "attention_in_multiplier": "mup_multipliers.attention_in",
    "attention_out_multiplier": "mup_multipliers.attention_out",
    "ssm_in_multiplier": "mup_multipliers.linear_in", "ssm_out_multiplier": "mup_multipliers.linear_out",
    "ssm_multipliers": "mup_multipliers.linear_sections", "mlp_multipliers": "mup_multipliers.mlp",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    if theirs.projectors_bias != theirs.mamba_proj_bias:
        raise ConversionError(
            f"falcon_h1: projectors_bias={theirs.projectors_bias} with mamba_proj_bias={theirs.mamba_proj_bias} is not "
            "supported: zoo's mixers have biases on both projections or on none."
        )
    fields = {"rope_parameters": rope(theirs), "layer_types": list(theirs.layer_types)}
    fields |= {"linear_attn_config.act": theirs.hidden_act, "logits_scaling": 1 / theirs.lm_head_multiplier}
    fields |= {"linear_attn_config.norm_before_gate": theirs.mamba_norm_before_gate}
    fields |= {"linear_attn_config.output_norm": "group" if theirs.mamba_rms_norm else "none"}
    return fields | {"linear_attn_config.time_step_limit": step_limit(theirs.time_step_limit)}


def restore(ours: Ours) -> Keys:
    keys = {"rope_parameters": restore_rope(ours), "lm_head_multiplier": 1 / ours.logits_scaling}
    keys |= {"mamba_rms_norm": ours.linear_attn_config["output_norm"] == "group", "mamba_d_ssm": inner_width(ours)}
    keys |= {
        "mamba_norm_before_gate": ours.linear_attn_config["norm_before_gate"],
        "projectors_bias": ours.linear_attn_config["bias"],
    }
    return keys | {"time_step_limit": restore_step_limit(ours)}


TINY = tiny(
    **TINY_SSD | {"num_hidden_layers": 3, "mamba_d_head": 7}, mamba_d_ssm=56, lm_head_multiplier=0.3,
    embedding_multiplier=5.0, key_multiplier=0.6, attention_in_multiplier=0.9, attention_out_multiplier=1.4,
    ssm_in_multiplier=1.3, ssm_out_multiplier=0.8, ssm_multipliers=[0.5, 1.5, 0.7, 1.3, 0.9],
    mlp_multipliers=[0.7, 1.2],
)  # fmt: skip
FAMILY = Family(
    fields=with_fields({"rms_norm_eps": "norm_eps", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"})
    | SSD_FIELDS
    | MULTIPLIERS,
    fixed={"linear_attention_type": "mamba2", "precision.linear_norm": "float32"},
    derive=derive,
    restore=restore,
    rules=[
        *mixer_rules(LAYER + "mamba.", MIXER, where=None),
        *HYBRID_RULES,
    ],
    tiny=[
        TINY,
        TINY
        | {"mamba_rms_norm": True, "mamba_conv_bias": False, "mamba_proj_bias": True, "projectors_bias": True,
           "attention_bias": True, "mlp_bias": True,
           "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "mamba_d_conv": 3, "num_hidden_layers": 2},
        tiny(
            head_dim=20, mamba_n_heads=6, mamba_d_head=9, mamba_d_ssm=54, mamba_n_groups=3, mamba_d_state=10,
            mamba_rms_norm=True, mamba_norm_before_gate=False,
        ),
    ],
)  # fmt: skip
