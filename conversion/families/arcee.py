"""AFM 4.5B (Arcee AI 2025): Llama with a plain MLP and squared ReLU."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    fixed={"gated_mlp": False},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
        ),
    ],
)  # fmt: skip
