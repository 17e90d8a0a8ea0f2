"""Code World Model 32B (Meta FAIR 2025): Llama without biases whose layers slide but every fourth."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, restore_window, tiny, window_fields

FAMILY = Family(
    fields=LLAMA_FIELDS | {"mlp_bias": "mlp_bias"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours)} | restore_window(ours),
    rules=LLAMA_RULES,
    tiny=[
        tiny(sliding_window=5, num_hidden_layers=5),
        tiny(
            sliding_window=6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ],
)  # fmt: skip
