"""OLMo (Groeneveld et al. 2024): Llama with a layer norm that has no parameters, projections clamped if asked."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = {name: ours for name, ours in LLAMA_FIELDS.items() if name != "rms_norm_eps"}

FAMILY = Family(
    fields=FIELDS | {"attention_bias": "attention_bias", "clip_qkv": "clip_qkv"},
    fixed={
        "norm_type": "layer_norm", "norm_elementwise_affine": False, "norm_eps": 1e-5, "precision.norm": "native",
        "precision.rope": "float32_trig",
    },
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., clip_qkv=0.8),
        tiny(head_dim=..., attention_bias=True, tie_word_embeddings=True),
    ],
)  # fmt: skip
