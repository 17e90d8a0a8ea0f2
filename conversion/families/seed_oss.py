"""Seed-OSS 36B (ByteDance 2025): Llama with biases on q, k and v, one on the output if asked, and residual dropout."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = LLAMA_FIELDS | {
    name: name for name in ("attention_bias", "attention_out_bias", "mlp_bias", "residual_dropout")
}

FAMILY = Family(
    fields=FIELDS,
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(attention_bias=False, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ],
)
