"""FlexOlmo (Shi et al. 2025): OLMo 2 with experts that were trained apart."""

from dataclasses import replace

from .olmo2 import FAMILY as OLMO2
from .olmoe import FAMILY as OLMOE
from .olmoe import FIELDS, TINY
from .shared_common import expert_rules
from .shared_experts import normed

FAMILY = replace(
    OLMOE,
    fields={name: ours for name, ours in FIELDS.items() if name != "clip_qkv"},
    fixed=OLMO2.fixed | {"precision.router_weights": "activation"},
    derive=lambda theirs: OLMO2.derive(theirs) | normed(theirs),
    rules=[*expert_rules(), *OLMO2.rules],
    tiny=[
        TINY | {"pad_token_id": 0},
        TINY
        | {
            "pad_token_id": 0,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
    ],
)
