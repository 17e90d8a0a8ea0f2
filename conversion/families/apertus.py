"""Apertus (Swiss AI 2025): Llama with a plain xIELU MLP, whose four numbers per layer are in the file, and a norm on
queries and keys."""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import renames
from .shared_common import LLAMA_FIELDS, ROPE_BUFFERS, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"gated_mlp": False, "qk_norm": "rms_norm"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[*renames({"attention_layernorm": "attn_norm", "feedforward_layernorm": "mlp_norm"}), *ROPE_BUFFERS],
    tiny=[
        tiny(head_dim=...),
        tiny(
            head_dim=..., hidden_act="relu2", attention_bias=True, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
    ],
)  # fmt: skip
