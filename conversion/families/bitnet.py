"""BitNet b1.58 2B4T (Ma et al. 2025): Llama with squared ReLU and a norm in front of each output projection.

Its ternary matrices are a storage format, `conversion/formats/bitnet.py`.
"""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import renames
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"block_type": "sub_norm"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[
        *renames({"self_attn.attn_sub_norm": "self_attn.sub_norm", "mlp.ffn_sub_norm": "mlp.sub_norm"}),
        *LLAMA_RULES,
    ],
    tiny=[
        tiny(head_dim=...),
        tiny(
            head_dim=..., attention_bias=True, tie_word_embeddings=True, hidden_act="silu", rms_norm_eps=1e-3,
            rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        ),
    ],
)  # fmt: skip
