"""Ministral 8B (Mistral AI 2024): Mistral with full and sliding layers."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, restore_window, tiny, window_fields

FAMILY = Family(
    fields=LLAMA_FIELDS,
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours)} | restore_window(ours),
    rules=LLAMA_RULES,
    tiny=[
        tiny(sliding_window=5, layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
        tiny(sliding_window=6, tie_word_embeddings=True, rms_norm_eps=1e-5),
    ],
)
