"""Qwen3.5 (Qwen team 2026), the text model: Qwen3-Next's two kinds of layers with a dense MLP.

The tensors of the delta rule stand apart, queries, keys and values one above the other.
"""

from ..engine.family import Family
from ..engine.rules import Keep, Rule, Split
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny
from .shared_experts import MTP_HEADS
from .shared_linear import (
    DELTA_RULES,
    GATED_HYBRID,
    KEYS,
    LAYER,
    MIXER,
    TINY_DELTA,
    VALUES,
    gated_hybrid,
    recurrent_rule,
    restore_gated_hybrid,
)

# In the checkpoints with vision, also where their config is that of the text model alone.
WRAPPED = {"model.language_model.": "model."}
TEXT_RULES: list[Rule] = [
    Keep("model.visual.{*}"),
    recurrent_rule(
        f"{LAYER}linear_attn.in_proj_qkv.weight", [f"{MIXER}{x}_proj.weight" for x in "qkv"], Split(KEYS, KEYS, VALUES)
    ),
    *(
        recurrent_rule(f"{LAYER}linear_attn.in_proj_{x}.weight", f"{MIXER}{y}_proj.weight")
        for x, y in ("zg", "bb", "aa")
    ),
    *DELTA_RULES,
    *MTP_HEADS,
]
OTHER_LAYERS = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_hidden_layers": 3,
    "linear_num_key_heads": 4, "linear_conv_kernel_dim": 3, "attention_bias": True, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-2, "hidden_act": "gelu",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}  # fmt: skip

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed=GATED_HYBRID,
    derive=gated_hybrid,
    restore=restore_gated_hybrid,
    also_prefixes=WRAPPED,
    rules=[*TEXT_RULES, *LLAMA_RULES],
    tiny=[tiny(**TINY_DELTA), tiny(**TINY_DELTA | OTHER_LAYERS)],
)
