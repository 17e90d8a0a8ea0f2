"""Qwen3 (Yang et al. 2025): Qwen2 without its biases, with a norm on the queries and keys of every head."""

from ..engine.family import Family
from .qwen2 import FAMILY as QWEN2
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"qk_norm": "rms_norm"},
    derive=QWEN2.derive,
    restore=QWEN2.restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        tiny(attention_bias=True, rms_norm_eps=1e-5),
    ],
)
