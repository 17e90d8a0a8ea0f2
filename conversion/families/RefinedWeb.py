"""Falcon 40B (Almazrouei et al. 2023) as its first files call it: the names of its config are others."""

from dataclasses import replace

from ..engine.published_config import published_config
from .falcon import FAMILY as FALCON

OLD_NAMES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
LARGE_NAMES = OLD_NAMES | {"num_kv_heads": "n_head_kv"}
DEFAULTS = {
    "vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02, "use_cache": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "alibi": False, "bias": False, "tie_word_embeddings": True, "activation": "gelu",
    "max_position_embeddings": 2048, "ffn_hidden_size": None, "rope_parameters": None,
}  # fmt: skip
TINY = {"vocab_size": 101, "hidden_size": 48, "n_layer": 3, "n_head": 6}
# What the config of a later Falcon says, and an early one is.
LARGE = {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2, "parallel_attn": True, "multi_query": False}
FAMILY = replace(
    FALCON,
    config_class=published_config(
        "RefinedWeb", OLD_NAMES | {"num_kv_heads": "n_head_kv"}, **DEFAULTS | LARGE, n_head_kv=8
    ),
    architecture="RWForCausalLM",
    tiny=[TINY | {"n_head_kv": 2}, TINY | {"n_head_kv": 3, "bias": True, "tie_word_embeddings": False}],
)
