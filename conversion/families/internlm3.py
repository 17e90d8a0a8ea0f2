"""InternLM3 8B (Shanghai AI Laboratory 2025): Llama under another name; with biases everywhere or nowhere."""

from dataclasses import replace

from .llama import FAMILY as LLAMA
from .shared_common import tiny

FAMILY = replace(
    LLAMA,
    tiny=[tiny(), tiny(qkv_bias=True, bias=True, tie_word_embeddings=True, rms_norm_eps=1e-6)],
)
