"""Cosmos 3, the reasoner (NVIDIA 2026): Qwen3-VL under the names of Diffusers; a generator beside it is kept, too."""

from ..engine.rules import renames
from ..engine.wrappers import around

ATTENTION = renames(
    {
        "self_attn.to_q": "self_attn.q_proj", "self_attn.to_k": "self_attn.k_proj",
        "self_attn.to_v": "self_attn.v_proj", "self_attn.to_out": "self_attn.o_proj",
        "self_attn.norm_q": "self_attn.q_norm", "self_attn.norm_k": "self_attn.k_norm",
    }
)  # fmt: skip

FAMILY = around("cosmos3_omni", "qwen3_vl_text", rules=ATTENTION)
