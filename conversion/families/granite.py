"""Granite 3 (IBM 2024): Llama with a multiplier on embeddings, residual branches, scores and logits (μP)."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = LLAMA_FIELDS | {
    name: name
    for name in (
        "attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    )
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    scale = theirs.attention_multiplier
    return {"rope_parameters": rope(theirs), "attention_multiplier": None if scale == head_dim**-0.5 else scale}


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours), "attention_multiplier": ours.attention_scaling(0)}


FAMILY = Family(
    fields=FIELDS,
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(
            head_dim=..., embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.17,
            logits_scaling=8.0,
        ),
        tiny(head_dim=..., tie_word_embeddings=True, attention_bias=True, mlp_bias=True, logits_scaling=3),
    ],
)  # fmt: skip
