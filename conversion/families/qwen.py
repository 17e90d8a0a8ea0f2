"""Qwen 1.8B to 72B, the first generation (Bai et al. 2023, arXiv 2309.16609): Llama with biases on queries, keys and
values, which are one tensor, under GPT-2's names."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import published_config
from ..engine.rules import Drop, Rule, Split, renames
from .shared_gpt import GPT_FIELDS, K, Q, V, require, rotary_factor

LAYER = "transformer.h.{i}."
NAMES = {
    "ln_1": "attn_norm", "ln_2": "mlp_norm", "attn.c_proj": "self_attn.o_proj", "mlp.w2": "mlp.gate_proj",
    "mlp.w1": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip
TINY = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
    "kv_channels": 8, "seq_length": 64,
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    require(theirs, scale_attn_weights=True)
    turned = int(theirs.kv_channels * theirs.rotary_pct)
    table = {"rope_type": "default", "rope_theta": float(theirs.rotary_emb_base)}
    if turned != theirs.kv_channels:
        table["partial_rotary_factor"] = rotary_factor(turned, theirs.kv_channels)
    biased = not theirs.no_bias
    biases = {"attention_bias": True, "attention_out_bias": biased, "mlp_bias": biased}
    return biases | {"rope_parameters": table, "intermediate_size": theirs.intermediate_size // 2}


def restore(ours: Ours) -> Keys:
    table = ours.rope_parameters
    rotation = {"rotary_emb_base": table["rope_theta"], "rotary_pct": table.get("partial_rotary_factor", 1.0)}
    return rotation | {"intermediate_size": 2 * ours.intermediate_size, "no_bias": not ours.mlp_bias}


FAMILY = Family(
    config_class=published_config(
        "qwen", {"head_dim": "kv_channels"}, vocab_size=151936, hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, emb_dropout_prob=0.0, attn_dropout_prob=0.0, layer_norm_epsilon=1e-6,
        initializer_range=0.02, max_position_embeddings=8192, scale_attn_weights=True, use_cache=True, kv_channels=128,
        rotary_pct=1.0, rotary_emb_base=10000, use_dynamic_ntk=True, use_logn_attn=True, intermediate_size=22016,
        no_bias=True, tie_word_embeddings=False, seq_length=8192,
    ),
    architecture="QWenLMHeadModel",
    # Beyond `seq_length` their code rescales rotation and queries, which no other length shows.
    fields=GPT_FIELDS
    | {
        "use_cache": "use_cache", "seq_length": "max_position_embeddings", "kv_channels": "head_dim",
        "emb_dropout_prob": "embedding_dropout", "attn_dropout_prob": "attention_dropout",
    },
    derive=derive,
    restore=restore,
    rules=[
        Rule(f"{LAYER}attn.c_attn.{{w}}", [Q, K, V], Split("q", "k", "v")),
        *renames(NAMES, LAYER),
        Rule("transformer.wte.weight", "model.embed_tokens.weight"),
        Rule("transformer.ln_f.weight", "model.norm.weight"),
        Drop("transformer.rotary_emb.inv_freq"),
        Drop(f"{LAYER}attn.masked_bias"),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY,
        TINY | {"kv_channels": 12, "no_bias": False, "rotary_emb_base": 500, "tie_word_embeddings": True},
        TINY | {"rotary_pct": 0.5, "layer_norm_epsilon": 1e-3},
    ],
)  # fmt: skip
