"""Mistral 7B (Jiang et al. 2023): Llama without biases; all layers slide when there is a window."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"sliding_window": "sliding_window"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[tiny(sliding_window=5), tiny(sliding_window=None, tie_word_embeddings=True)],
)
