"""GPT-NeoX (Black et al. 2022), Pythia, RedPajama, Dolly: GPT-J with two norms and a rotation by halves."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Drop, Rule, renames
from .shared_gpt import GPT_FIELDS, PLAIN, TINY_PLAIN, grouped_qkv

PARALLEL = {"block_type": "parallel_two_norms", "precision.parallel_sum_order": "branches_first"}
TINY = TINY_PLAIN | {"intermediate_size": 80, "max_position_embeddings": 64, "rotary_pct": 0.5}


def derive(theirs: Theirs) -> Keys:
    block = PARALLEL if theirs.use_parallel_residual else {}
    return {"rope_parameters": rope(theirs, partial=True), "embedding_dropout": theirs.hidden_dropout} | block


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours), "use_parallel_residual": ours.block_type == "parallel_two_norms"}


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if ours != "norm_eps"}
    | {name: name for name in ("intermediate_size", "hidden_act", "max_position_embeddings", "use_cache")}
    | {
        "layer_norm_eps": "norm_eps", "attention_bias": "attention_bias", "attention_dropout": "attention_dropout",
        "hidden_dropout": "residual_dropout",
    },
    fixed=PLAIN | {"mlp_bias": True},
    derive=derive,
    restore=restore,
    rules=[
        *renames({"embed_in": "embed_tokens", "final_layer_norm": "norm"}, "gpt_neox.", "model."),
        *renames(
            {
                "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm",
                "attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.up_proj",
                "mlp.dense_4h_to_h": "mlp.down_proj",
            },
            "gpt_neox.layers.{i}.",
        ),
        grouped_qkv("gpt_neox.layers.{i}.attention.query_key_value"),
        Rule("embed_out.weight", "lm_head.weight"),
        Drop("gpt_neox.layers.{i}.attention.{bias|masked_bias|rotary_emb.inv_freq}"),
    ],
    base_prefix="gpt_neox.",
    tiny=[
        TINY,
        TINY | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new", "rotary_pct": 1.0},
        TINY | {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
)  # fmt: skip
