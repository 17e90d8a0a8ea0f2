"""MPT (MosaicML 2023): ALiBi, no bias anywhere; most older fields of its config change nothing."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Rule, Split, renames
from .shared_gpt import GPT_FIELDS, PLAIN, TINY_PLAIN, K, Q, V

TINY = TINY_PLAIN | {"max_seq_len": 64}


def derive(theirs: Theirs) -> Keys:
    attention = theirs.attn_config
    return {
        "clip_qkv": attention.clip_qkv or None,
        "attention_multiplier": attention.softmax_scale,
        "attention_dropout": attention.attn_pdrop,
        "residual_dropout": attention.attn_pdrop,
    }


def restore(ours: Ours) -> Keys:
    kept = (ours.source_config or {}).get("attn_config") or {}
    return {"attn_config": kept | {"clip_qkv": ours.clip_qkv, "softmax_scale": ours.attention_multiplier}}


FAMILY = Family(
    fields=GPT_FIELDS | {"max_seq_len": "max_position_embeddings", "use_cache": "use_cache"},
    fixed=PLAIN | {"norm_bias": False, "position_embedding_type": "alibi", "hidden_act": "gelu"},
    derive=derive,
    restore=restore,
    rules=[
        *renames({"wte": "embed_tokens", "norm_f": "norm"}, "transformer.", "model."),
        *renames(
            {
                "norm_1": "attn_norm", "norm_2": "mlp_norm", "attn.out_proj": "self_attn.o_proj",
                "ffn.up_proj": "mlp.up_proj", "ffn.down_proj": "mlp.down_proj",
            },
            "transformer.blocks.{i}.",
        ),
        Rule("transformer.blocks.{i}.attn.Wqkv.{w}", [Q, K, V], Split("q", "k", "v")),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY,
        TINY | {"attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.3}, "tie_word_embeddings": False},
        TINY | {"num_attention_heads": 8, "layer_norm_epsilon": 1e-3, "attn_config": {"clip_qkv": 0.0}},
    ],
)  # fmt: skip
