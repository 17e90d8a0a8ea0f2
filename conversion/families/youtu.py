"""Youtu-LLM (Tencent 2025, arXiv 2512.24618): DeepSeek-V3's attention in a dense model."""

from ..engine.family import Family, restore_rope, rope
from .shared_common import LLAMA_RULES
from .shared_latent import LATENT, LATENT_FIELDS, YARN, tiny_latent

FAMILY = Family(
    fields=LATENT_FIELDS | {"rope_interleave": "rope_interleave"},
    fixed=LATENT,
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[
        tiny_latent(),
        tiny_latent(
            q_lora_rank=None, rope_interleave=False, attention_bias=True, tie_word_embeddings=False,
            rope_parameters=YARN,
        ),
    ],
)  # fmt: skip
