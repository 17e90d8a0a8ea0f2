"""OLMo 3 (OLMo team 2025): OLMo 2 whose layers slide but every fourth; each kind of layer has its own rotation."""

from dataclasses import replace

from ..engine.family import restore_rope, rope
from .olmo2 import FAMILY as OLMO2
from .shared_common import restore_window, tiny, window_fields

YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16}

FAMILY = replace(
    OLMO2,
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours)} | restore_window(ours),
    tiny=[
        tiny(head_dim=..., num_hidden_layers=4, sliding_window=5),
        tiny(
            head_dim=..., num_hidden_layers=2, sliding_window=6, attention_bias=True, tie_word_embeddings=True,
            layer_types=["full_attention", "sliding_attention"],
            rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        ),
        tiny(head_dim=..., layer_types=["full_attention"] * 3),
    ],
)  # fmt: skip
