"""Gemma (Gemma team 2024): Llama with norm weights stored as an offset from one and embeddings scaled by √hidden."""

from math import sqrt

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = LLAMA_FIELDS | {"attention_bias": "attention_bias"}
FIXED = {"norm_unit_offset": True, "precision.embedding_multiplier_in_weight_dtype": True}


def derive(theirs: Theirs) -> Keys:
    return {
        "rope_parameters": rope(theirs),
        "embedding_multiplier": sqrt(theirs.hidden_size),
        "use_bidirectional_attention": bool(getattr(theirs, "use_bidirectional_attention", False)),
    }


def restore(ours: Ours) -> Keys:
    both_ways = {"use_bidirectional_attention": True} if ours.use_bidirectional_attention else {}
    return {"rope_parameters": restore_rope(ours)} | both_ways


FAMILY = Family(
    fields=FIELDS,
    fixed=FIXED,
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(attention_bias=True, tie_word_embeddings=False, hidden_act="gelu", rms_norm_eps=1e-5),
    ],
)
