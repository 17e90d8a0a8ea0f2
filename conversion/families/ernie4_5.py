"""ERNIE 4.5 0.3B (Baidu 2025): Llama with rotated pairs, the rotation in float32, biases everywhere or nowhere."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = {name: ours for name, ours in LLAMA_FIELDS.items() if name != "attention_dropout"}

FAMILY = Family(
    fields=FIELDS | {"use_bias": "attention_bias"},
    fixed={"rope_interleave": True, "precision.rope": "float32_trig"},
    derive=lambda theirs: {"rope_parameters": rope(theirs), "mlp_bias": theirs.use_bias},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[tiny(), tiny(use_bias=True, tie_word_embeddings=False, rms_norm_eps=1e-6)],
)
