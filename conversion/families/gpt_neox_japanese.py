"""GPT-NeoX Japanese 2.7B (ABEJA 2022): GPT-NeoX with one norm after the other and no biases but the last layer's
attention output."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, renames
from .shared_gpt import GPT_FIELDS, PLAIN, TINY_PLAIN, grouped_qkv

LAYER = "gpt_neox_japanese.layers.{i}."
TINY = TINY_PLAIN | {"max_position_embeddings": 64}


def derive(theirs: Theirs) -> Keys:
    return {
        "rope_parameters": rope(theirs, partial=True),
        "intermediate_size": int(theirs.hidden_size * theirs.intermediate_multiple_size),
        "per_layer_config": {theirs.num_hidden_layers - 1: {"attention_out_bias": True}},
    }


def restore(ours: Ours) -> Keys:
    return {
        "rope_parameters": restore_rope(ours),
        "intermediate_multiple_size": ours.intermediate_size // ours.hidden_size,
    }


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if ours != "norm_eps"}
    | {name: name for name in ("hidden_act", "max_position_embeddings", "use_cache", "attention_dropout")}
    | {"layer_norm_eps": "norm_eps", "hidden_dropout": "residual_dropout"},
    fixed=PLAIN,
    derive=derive,
    restore=restore,
    rules=[
        grouped_qkv(LAYER + "attention.query_key_value"),
        Rule(LAYER + "attention.dense_bias", "model.layers.{i}.self_attn.o_proj.bias"),
        *renames(
            {
                "attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.up_proj",
                "mlp.dense_4h_to_h": "mlp.down_proj", "input_layernorm": "attn_norm",
                "post_attention_layernorm": "mlp_norm",
            },
            theirs=LAYER,
        ),
        Rule("gpt_neox_japanese.embed_in.weight", "model.embed_tokens.weight"),
        Rule("gpt_neox_japanese.final_layer_norm.{w}", "model.norm.{w}"),
        Rule("embed_out.weight", "lm_head.weight"),
    ],
    base_prefix="gpt_neox_japanese.",
    tiny=[TINY, TINY | {"rotary_pct": 0.5, "intermediate_multiple_size": 2, "tie_word_embeddings": False}],
)  # fmt: skip
