"""OLMo 2 (OLMo team 2024): norms on the outputs of attention and MLP, and over all queries or keys of a token."""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import renames
from .shared_common import LLAMA_FIELDS, ROPE_BUFFERS, tiny

RULES = [
    *renames({"post_attention_layernorm": "attn_output_norm", "post_feedforward_layernorm": "mlp_output_norm"}),
    *ROPE_BUFFERS,
]

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={
        "block_type": "output_norm", "precision.norm": "scale_then_cast", "precision.rope": "float32_trig",
        "qk_norm": "rms_norm", "qk_norm_config.scope": "full",
    },
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=RULES,
    tiny=[
        tiny(head_dim=...),
        tiny(head_dim=..., attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-6),
    ],
)  # fmt: skip
