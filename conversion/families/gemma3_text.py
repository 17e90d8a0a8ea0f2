"""Gemma 3 (Gemma team 2025), text: Gemma 2 with a norm on queries and keys instead of capped scores, five sliding
layers to one full, a rotation for each kind."""

from ..engine.family import Family
from ..engine.rules import renames
from .gemma import FIXED
from .gemma2 import FIELDS, NORMS, derive, restore
from .shared_common import ROPE_BUFFERS, tiny

LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}

FAMILY = Family(
    fields=FIELDS,  # its attn_logit_softcapping is never used
    fixed=FIXED | {"block_type": "sandwich_norm", "qk_norm": "rms_norm"},
    derive=derive,
    restore=restore,
    rules=[*renames(NORMS), *ROPE_BUFFERS],
    tiny=[
        tiny(num_hidden_layers=6, sliding_window=5, query_pre_attn_scalar=7, attn_logit_softcapping=0.1),
        tiny(
            num_hidden_layers=2, sliding_window=4, final_logit_softcapping=9.0, attention_bias=True,
            tie_word_embeddings=False, layer_types=["full_attention", "sliding_attention"],
            rope_parameters={"full_attention": LINEAR, "sliding_attention": PLAIN},
        ),
    ],
)  # fmt: skip
