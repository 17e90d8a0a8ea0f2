"""Helium 2B (Kyutai 2025): Llama with rotated pairs, a norm that scales before it rounds, no bias on the output."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    fixed={"attention_out_bias": False, "precision.norm": "scale_then_cast", "rope_interleave": True},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    # Its output projection is hidden × hidden, so heads × head_dim has to be hidden.
    tiny=[
        tiny(head_dim=8),
        tiny(head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ],
)
