"""DiffLlama (kajuma 2024): Llama with differential attention (Ye et al. 2024)."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"attention_type": "differential"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(head_dim=..., tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-3),
        tiny(num_key_value_heads=6, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ],
)
