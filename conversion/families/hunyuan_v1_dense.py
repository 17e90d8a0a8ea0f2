"""Hunyuan dense models (Tencent 2025): Llama with a norm on queries and keys after the rotation.

Their rotation "dynamic" with an `alpha` has a fixed base, θ · alpha^(d / (d - 2)): an ordinary rotation.
"""

from ..engine.family import Family, Keys, Theirs, restore_rope, rope
from ..engine.rules import renames
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny


def derive(theirs: Theirs) -> Keys:
    parameters = rope(theirs)
    alpha = parameters.get("alpha")
    if parameters["rope_type"] == "dynamic" and alpha:
        width = theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads
        base = parameters["rope_theta"] * alpha ** (width / (width - 2))
        parameters = {"rope_type": "default", "rope_theta": base}
    return {"rope_parameters": parameters}


FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"qk_norm": "rms_norm", "qk_norm_config.position": "after_rope"},
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[
        *renames({"self_attn.query_layernorm": "self_attn.q_norm", "self_attn.key_layernorm": "self_attn.k_norm"}),
        *LLAMA_RULES,
    ],
    tiny=[
        tiny(),
        tiny(
            attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0},
        ),
    ],
)  # fmt: skip
