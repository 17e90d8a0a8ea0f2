"""Gemma 2 (Gemma team 2024): Gemma with norms on both sides of each sub-layer, capped scores and logits, every other
layer sliding."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .gemma import FIELDS as GEMMA
from .gemma import FIXED
from .gemma import derive as gemma
from .gemma import restore as restore_gemma
from .shared_common import ROPE_BUFFERS, restore_window, tiny, window_fields

FIELDS = {name: ours for name, ours in GEMMA.items() if name != "hidden_act"}
FIELDS |= {"hidden_activation": "hidden_act", "final_logit_softcapping": "final_logit_softcapping"}
NORMS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "attn_output_norm",
    "pre_feedforward_layernorm": "mlp_norm", "post_feedforward_layernorm": "mlp_output_norm",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    width = theirs.query_pre_attn_scalar
    scale = {"attention_multiplier": None if width == theirs.head_dim else width**-0.5}
    return gemma(theirs) | window_fields(theirs) | scale


def restore(ours: Ours) -> Keys:
    scale = ours.attention_scaling(0)
    return restore_gemma(ours) | restore_window(ours) | {"query_pre_attn_scalar": round(scale**-2)}


FAMILY = Family(
    fields=FIELDS | {"attn_logit_softcapping": "attn_logit_softcapping"},
    fixed=FIXED | {"block_type": "sandwich_norm"},
    derive=derive,
    restore=restore,
    rules=[*renames(NORMS), *ROPE_BUFFERS],
    tiny=[
        tiny(sliding_window=5, query_pre_attn_scalar=7, attn_logit_softcapping=3.0, final_logit_softcapping=9.0),
        tiny(
            num_hidden_layers=2, sliding_window=4, attn_logit_softcapping=None, final_logit_softcapping=None,
            attention_bias=True, tie_word_embeddings=False, layer_types=["full_attention", "sliding_attention"],
        ),
    ],
)  # fmt: skip
