"""OPT (Zhang et al. 2022): GPT-3's block, positions counted over attended tokens from row two; 350m norms after."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .shared_gpt import GPT_FIELDS, PLAIN, TINY_PLAIN

TINY = TINY_PLAIN | {"ffn_dim": 80, "max_position_embeddings": 64}


def derive(theirs: Theirs) -> Keys:
    narrow = theirs.word_embed_proj_dim
    before = theirs.do_layer_norm_before
    return {
        "block_type": "pre_norm" if before else "post_norm",
        "final_norm": before and not theirs._remove_final_layer_norm,
        "embedding_size": None if narrow == theirs.hidden_size else narrow,
        "mlp_bias": theirs.enable_bias,
    }


def restore(ours: Ours) -> Keys:
    before = ours.block_type == "pre_norm"
    return {
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not ours.final_norm,
        "word_embed_proj_dim": ours.output_width,
    }


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if name not in ("layer_norm_epsilon", "initializer_range")}
    | {
        "max_position_embeddings": "max_position_embeddings", "use_cache": "use_cache", "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act", "init_std": "initializer_range", "enable_bias": "attention_bias",
        "layer_norm_elementwise_affine": "norm_elementwise_affine", "dropout": "residual_dropout",
        "attention_dropout": "attention_dropout",
    },
    fixed=PLAIN
    | {
        "norm_eps": 1e-5, "position_embedding_type": "learned",
        "position_config": {"offset": 2, "ids_from_mask": True},
    },
    derive=derive,
    restore=restore,
    rules=lambda config: [
        *renames(
            {name: name for name in ("embed_tokens", "embed_positions", "project_in", "project_out")}
            | {"final_layer_norm": "norm"},
            "model.decoder.",
            "model.",
        ),
        *renames(
            {
                "self_attn_layer_norm": "attn_norm" if config.block_type == "pre_norm" else "attn_output_norm",
                "final_layer_norm": "mlp_norm" if config.block_type == "pre_norm" else "mlp_output_norm",
                "self_attn.out_proj": "self_attn.o_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj",
            }
            | {f"self_attn.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"},
            "model.decoder.layers.{i}.",
        ),
    ],
    tiny=[
        TINY,
        TINY | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        TINY | {"_remove_final_layer_norm": True, "tie_word_embeddings": False, "activation_function": "gelu"},
        TINY | {"enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
)  # fmt: skip
