"""Nemotron 3 and 4, Minitron (Parmar et al. 2024): layer norms that store weight - 1, squared ReLU without a gate."""

from ..engine.family import COMMON_FIELDS, Family, restore_rope, rope
from .shared_common import LLAMA_RULES, tiny
from .shared_gpt import PLAIN

FAMILY = Family(
    fields=COMMON_FIELDS | {"norm_eps": "norm_eps", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    fixed=PLAIN | {"norm_unit_offset": True},
    derive=lambda theirs: {"rope_parameters": rope(theirs, partial=True)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(),
        tiny(head_dim=..., attention_bias=True, mlp_bias=True, tie_word_embeddings=True, partial_rotary_factor=1.0),
        tiny(norm_eps=1e-3, hidden_act="gelu", partial_rotary_factor=0.25, head_dim=16, rope_theta=500.0),
    ],
)
