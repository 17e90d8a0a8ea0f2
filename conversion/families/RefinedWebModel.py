"""Falcon 1B and 7B (Almazrouei et al. 2023) as their first files call them: the names of their config are others."""

from dataclasses import replace

from ..engine.published_config import published_config
from .falcon import FAMILY as FALCON
from .RefinedWeb import DEFAULTS, OLD_NAMES, TINY

SMALL = {"new_decoder_architecture": False, "num_ln_in_parallel_attn": None, "num_kv_heads": None}
FAMILY = replace(
    FALCON,
    config_class=published_config(
        "RefinedWebModel", OLD_NAMES, **DEFAULTS | SMALL, multi_query=False, parallel_attn=False
    ),
    architecture="RWForCausalLM",
    tiny=[
        TINY | {"multi_query": True, "parallel_attn": True},
        TINY | {"bias": True, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ],
)
