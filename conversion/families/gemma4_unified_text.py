"""Gemma 4 12B (Gemma team 2026), text: Gemma 4 that has neither experts nor an embedding per layer."""

from dataclasses import replace

from ..engine.family import Keys, Ours
from .gemma4_text import FAMILY as GEMMA4
from .shared_common import tiny
from .shared_gemma4 import FULL, TINY

FOREIGN = ("enable_moe_block", "hidden_size_per_layer_input", "vocab_size_per_layer_input")
SIZES = {name: value for name, value in TINY.items() if name not in FOREIGN}


def restore(ours: Ours) -> Keys:
    return {name: value for name, value in GEMMA4.restore(ours).items() if name not in FOREIGN}


FAMILY = replace(
    GEMMA4,
    restore=restore,
    tiny=[
        tiny(**SIZES, attention_k_eq_v=True, num_global_key_value_heads=3, layer_types=["sliding_attention", FULL] * 2),
        tiny(
            **SIZES | {"num_hidden_layers": 5, "head_dim": 6, "global_head_dim": 8}, use_double_wide_mlp=True,
            num_kv_shared_layers=3, layer_types=["sliding_attention", FULL, "sliding_attention", FULL, FULL],
            tie_word_embeddings=False, attention_bias=True, final_logit_softcapping=9.0,
        ),
    ],
)  # fmt: skip
