"""What decoders before Llama share: layer norm, plain MLP, one head size, fused query-key-value projections."""

import math
from typing import Any

from ..engine.rules import Rule, Split
from ..errors import ConversionError

# No head_dim, no key-value heads, no inner width: these models derive them, so a config cannot say them otherwise.
GPT_FIELDS = {
    name: name
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range",
        "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
    )
} | {"layer_norm_epsilon": "norm_eps"}  # fmt: skip
# Configs with GPT-2's names.
GPT2_FIELDS = GPT_FIELDS | {
    "use_cache": "use_cache", "n_positions": "max_position_embeddings", "n_inner": "intermediate_size",
    "activation_function": "hidden_act", "embd_pdrop": "embedding_dropout", "resid_pdrop": "residual_dropout",
    "attn_pdrop": "attention_dropout",
}  # fmt: skip

PLAIN = {"norm_type": "layer_norm", "gated_mlp": False}
BIASED = PLAIN | {"attention_bias": True, "mlp_bias": True}

# Small, odd and mutually different sizes under GPT-2's names and under today's.
TINY_GPT2 = {"vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
TINY_PLAIN = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}

Q, K, V = (f"model.layers.{{i}}.self_attn.{x}_proj.{{w}}" for x in "qkv")
# Rows [group, (its queries, k, v), head_dim]: a group is a head, or all heads where there is one key-value head.
GROUPED_QKV = Split("q/num_key_value_heads", "head_dim", "head_dim", groups="num_key_value_heads")


def grouped_qkv(theirs: str) -> Rule:
    """A fused projection `theirs`, a name without `.weight`, whose rows are grouped by key-value head."""
    return Rule(f"{theirs}.{{w}}", [Q, K, V], GROUPED_QKV)


def require(theirs: Any, **settings: Any) -> None:
    """Raises ConversionError for a setting of their config that zoo has no concept for."""
    for name, value in settings.items():
        if getattr(theirs, name, value) != value:
            raise ConversionError(f"{name}={getattr(theirs, name)!r} is not supported, only {name}={value!r} is.")


def rotary_factor(rotary_dim: int, head_dim: int) -> float:
    """The `partial_rotary_factor` of which `int(head_dim * factor)` is `rotary_dim`."""
    factor = rotary_dim / head_dim
    return factor if int(head_dim * factor) == rotary_dim else math.nextafter(factor, 2.0)
