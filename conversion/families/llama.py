"""Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024) and every model that shares its class."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, hidden_act="gelu", rms_norm_eps=1e-5),
        tiny(
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        ),
        tiny(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        tiny(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ],
)  # fmt: skip
