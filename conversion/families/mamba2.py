"""Mamba-2 (Dao & Gu 2024, "Transformers are SSMs"): nothing but state space mixers with a matrix of state per head."""

from ..engine.family import Family, Keys, Theirs
from .shared_state_space import (
    PURE_FIXED,
    PURE_PREFIXES,
    PURE_RULES,
    RECURRENT,
    expansion,
    pure,
    restore_step_limit,
    step_limit,
)

FIELDS = {
    "num_heads": "linear_num_value_heads", "head_dim": "linear_value_head_dim", "n_groups": "linear_num_key_heads",
    "state_size": "linear_key_head_dim", "conv_kernel": "linear_conv_kernel_dim",
    "use_conv_bias": "linear_attn_config.conv_bias",
    "use_bias": "linear_attn_config.bias", "hidden_act": "linear_attn_config.act",
    "time_step_min": "linear_attn_config.time_step_min",
    "time_step_max": "linear_attn_config.time_step_max", "time_step_floor": "linear_attn_config.time_step_floor",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    layers = {"layer_types": [RECURRENT] * theirs.num_hidden_layers}
    return layers | {"linear_attn_config.time_step_limit": step_limit(theirs.time_step_limit)}


TINY = {
    "vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 12, "n_groups": 2,
    "state_size": 10,
}  # fmt: skip
FAMILY = Family(
    fields=pure(FIELDS),
    fixed=PURE_FIXED | {"linear_attention_type": "mamba2"},
    derive=derive,
    restore=lambda ours: {"expand": expansion(ours), "time_step_limit": restore_step_limit(ours)},
    rules=PURE_RULES,
    prefixes=PURE_PREFIXES,
    tiny=[
        TINY,
        TINY
        | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True, "conv_kernel": 3, "n_groups": 1,
           "residual_in_fp32": False, "layer_norm_epsilon": 1e-3},
        TINY | {"expand": 3, "num_heads": 12, "n_groups": 4, "time_step_limit": (1e-4, 50.0)},
    ],
)  # fmt: skip
