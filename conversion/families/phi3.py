"""Phi-3, 3.5 and 4 (Abdin et al. 2024): Llama with fused projections, LongRoPE and a window on every layer."""

from ..engine.family import Family, Keys, Ours, restore_rope, rope
from ..engine.rules import Rule, Split
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny
from .shared_gpt import K, Q, V

OLD_NAMES = ("su", "yarn")
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 7.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip


def prepare(raw: Keys) -> Keys:
    """Older spellings of LongRoPE, which transformers renames only after it has missed the original length."""
    for key in ("rope_scaling", "rope_parameters"):
        table = raw.get(key) or {}
        for name in ("type", "rope_type"):
            if table.get(name) in OLD_NAMES:
                raw[key] = table = table | {name: "longrope"}
    return raw


def restore(ours: Ours) -> Keys:
    table = restore_rope(ours)
    original = table.get("original_max_position_embeddings")
    return {"rope_parameters": table} | ({"original_max_position_embeddings": original} if original else {})


FAMILY = Family(
    fields=LLAMA_FIELDS
    | {"sliding_window": "sliding_window", "resid_pdrop": "residual_dropout", "embd_pdrop": "embedding_dropout"},
    derive=lambda theirs: {"rope_parameters": rope(theirs, partial=True)},
    restore=restore,
    prepare=prepare,
    rules=[
        *LLAMA_RULES,
        Rule("model.layers.{i}.self_attn.qkv_proj.{w}", [Q, K, V], Split("q", "k", "v")),
        Rule(
            "model.layers.{i}.mlp.gate_up_proj.{w}",
            ["model.layers.{i}.mlp.gate_proj.{w}", "model.layers.{i}.mlp.up_proj.{w}"],
            Split(parts=2),
        ),
    ],
    tiny=[
        tiny(pad_token_id=0, head_dim=..., sliding_window=5, num_key_value_heads=...),
        tiny(pad_token_id=0, head_dim=..., partial_rotary_factor=0.5, tie_word_embeddings=True),
        tiny(
            pad_token_id=0, head_dim=..., partial_rotary_factor=0.75, rope_parameters=LONG,
            original_max_position_embeddings=16,
        ),
        tiny(
            pad_token_id=0, head_dim=..., partial_rotary_factor=0.75, original_max_position_embeddings=12,
            rope_parameters=LONG | {"original_max_position_embeddings": 12, "attention_factor": 1.3},
        ),
    ],
)  # fmt: skip
