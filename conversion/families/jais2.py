"""Jais 2 (Inception, MBZUAI 2025): Llama with a layer norm, a plain MLP of squared ReLU, and biases."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import COMMON_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=COMMON_FIELDS | {"layer_norm_eps": "norm_eps", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    fixed={"norm_type": "layer_norm", "gated_mlp": False},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(attention_bias=False, mlp_bias=False, tie_word_embeddings=True, layer_norm_eps=1e-6),
    ],
)
