"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2 layers, a few of attention between them, an MLP in each."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import tiny
from .shared_state_space import (
    HYBRID_RULES,
    LAYER,
    TINY_SSD,
    duality,
    mixer_rules,
    restore_duality,
    with_fields,
)


def derive(theirs: Theirs) -> Keys:
    act = {} if set(theirs.layer_types) == {"full_attention"} else {"linear_attn_config.act": theirs.hidden_act}
    return {"rope_parameters": rope(theirs, partial=True)} | duality(theirs) | act


def restore(ours: Ours) -> Keys:
    attention = [index for index, layer_type in enumerate(ours.layer_types) if layer_type == "full_attention"]
    return {"rope_parameters": restore_rope(ours), "attn_layer_indices": attention} | (
        restore_duality(ours) or {"mamba_n_heads": 1}
    )


TINY = tiny(**TINY_SSD, attn_layer_indices=[1])
FAMILY = Family(
    fields=with_fields({"rms_norm_eps": "norm_eps", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}),
    derive=derive,
    restore=restore,
    rules=[*mixer_rules(LAYER + "mamba."), *HYBRID_RULES],
    tiny=[
        TINY,
        TINY
        | {"mamba_conv_bias": False, "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True,
           "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "mamba_d_conv": 3, "attn_layer_indices": [0, 3]},
        TINY | {"mamba_expand": 1, "mamba_n_heads": 4, "mamba_n_groups": 1, "num_hidden_layers": 2},
    ],
)  # fmt: skip
