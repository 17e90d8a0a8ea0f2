"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on q, k and v; the upper layers may slide."""

from ..engine.family import Family, Keys, Ours, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, restore_window_fields, tiny, window_fields


def restore(ours: Ours) -> Keys:
    slides = ours.sliding_window is not None
    return {"rope_parameters": restore_rope(ours), "use_sliding_window": slides} | restore_window_fields(ours)


FAMILY = Family(
    fields=LLAMA_FIELDS,
    fixed={"attention_bias": True, "attention_out_bias": False},
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs),
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=...),
        tiny(head_dim=..., tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        tiny(sliding_window=7, rms_norm_eps=1e-5),
    ],
)
