"""Mamba (Gu & Dao 2023): nothing but selective scans, a state of a few numbers per channel."""

from ..engine.family import Family, Keys, Ours, Theirs
from .shared_state_space import (
    PURE_FIXED,
    PURE_PREFIXES,
    PURE_RULES,
    PURE_SCAN_FIELDS,
    RECURRENT,
    expansion,
    pure,
)


def derive(theirs: Theirs) -> Keys:
    width = int(theirs.expand * theirs.hidden_size)
    return {"layer_types": [RECURRENT] * theirs.num_hidden_layers, "linear_value_head_dim": width}


def restore(ours: Ours) -> Keys:
    return {"expand": expansion(ours)}


TINY = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 10, "time_step_rank": 7}
VARIANTS = [
    TINY,
    TINY
    | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "conv_kernel": 3, "expand": 3,
       "residual_in_fp32": False, "layer_norm_epsilon": 1e-3, "time_step_rank": "auto"},
]  # fmt: skip
FAMILY = Family(
    fields=pure(PURE_SCAN_FIELDS),
    fixed=PURE_FIXED | {"linear_attention_type": "mamba", "linear_num_value_heads": 1},
    derive=derive,
    restore=restore,
    rules=PURE_RULES,
    prefixes=PURE_PREFIXES,
    tiny=VARIANTS,
)
