"""ChatGLM2 and 3 6B, GLM-4 9B (GLM team 2024, arXiv 2406.12793) under the names of their own code: queries, keys and
values in one tensor, gate and up in one, half of each head rotated, in pairs."""

from ..engine.family import COMMON_FIELDS, Family, Keys, Ours, Theirs
from ..engine.published_config import published_config
from ..engine.rules import Drop, Rule, Split, renames
from .shared_gpt import K, Q, V, require

THEIRS, MLP = "transformer.encoder.layers.{i}.", "model.layers.{i}.mlp."
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm", "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}  # fmt: skip
SIZES = {
    "vocab_size": "padded_vocab_size", "num_hidden_layers": "num_layers", "head_dim": "kv_channels",
    "intermediate_size": "ffn_hidden_size", "max_position_embeddings": "seq_length",
}  # fmt: skip
NOT_THEIRS = ("num_key_value_heads", "hidden_act", "initializer_range")
TINY = {
    "padded_vocab_size": 101, "hidden_size": 48, "ffn_hidden_size": 80, "num_layers": 3, "num_attention_heads": 6,
    "kv_channels": 12, "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 64,
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    require(
        theirs, apply_residual_connection_post_layernorm=False, post_layer_norm=True, fp32_residual_connection=False
    )
    linear = theirs.add_bias_linear
    heads = theirs.multi_query_group_num if theirs.multi_query_attention else theirs.num_attention_heads
    return {
        "num_key_value_heads": heads, "norm_type": "rms_norm" if theirs.rmsnorm else "layer_norm",
        "attention_bias": bool(linear or theirs.add_qkv_bias), "attention_out_bias": linear, "mlp_bias": linear,
        "rope_interleave": bool(theirs.original_rope), "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0 * theirs.rope_ratio, "partial_rotary_factor": 0.5,
        },
    }  # fmt: skip


def restore(ours: Ours) -> Keys:
    groups = {"multi_query_attention": True, "multi_query_group_num": ours.num_key_value_heads}
    bias = {"add_bias_linear": ours.mlp_bias, "add_qkv_bias": ours.attention_bias}
    rotation = {"rope_ratio": ours.rope_parameters["rope_theta"] / 10000.0, "original_rope": ours.rope_interleave}
    return groups | bias | rotation | {"rmsnorm": ours.norm_type == "rms_norm"}


FAMILY = Family(
    config_class=published_config(
        "chatglm", SIZES, num_layers=28, padded_vocab_size=65024, hidden_size=4096, ffn_hidden_size=13696,
        kv_channels=128, num_attention_heads=32, seq_length=2048, hidden_dropout=0.0, attention_dropout=0.0,
        layernorm_epsilon=1e-5, rmsnorm=True, apply_residual_connection_post_layernorm=False, post_layer_norm=True,
        add_bias_linear=False, add_qkv_bias=False, multi_query_attention=False, multi_query_group_num=1, rope_ratio=1.0,
        original_rope=True, fp32_residual_connection=False, tie_word_embeddings=False, use_cache=True,
    ),
    architecture="ChatGLMModel",
    fields={name: ours for name, ours in COMMON_FIELDS.items() if name not in NOT_THEIRS}
    | {"layernorm_epsilon": "norm_eps", "hidden_dropout": "residual_dropout"},
    derive=derive,
    restore=restore,
    rules=[
        Rule("transformer.embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule("transformer.output_layer.weight", "lm_head.weight"),
        Rule("transformer.encoder.final_layernorm.{w}", "model.norm.{w}"),
        Rule(THEIRS + "self_attention.query_key_value.{w}", [Q, K, V], Split("q", "k", "v")),
        Rule(THEIRS + "mlp.dense_h_to_4h.{w}", [MLP + "gate_proj.{w}", MLP + "up_proj.{w}"], Split(parts=2)),
        *renames(NAMES, THEIRS), Drop("transformer.rotary_pos_emb.inv_freq"),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY | {"add_qkv_bias": True, "rope_ratio": 0.05},
        TINY | {"multi_query_attention": False, "add_bias_linear": True, "tie_word_embeddings": True},
        TINY | {"rmsnorm": False, "original_rope": False, "layernorm_epsilon": 1e-3},
    ],
)  # fmt: skip
