"""CTRL (Keskar et al. 2019): the original Transformer's decoder, pre-norm, sines before cosines, scaled embeddings."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import renames
from .shared_gpt import BIASED, GPT_FIELDS, require

TINY = {"vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64, "dff": 80}


def derive(theirs: Theirs) -> Keys:
    # Only the last norm reads it: those of the layers have 1e-6.
    require(theirs, layer_norm_epsilon=1e-6)
    return {"embedding_multiplier": theirs.n_embd**0.5}


FAMILY = Family(
    fields=GPT_FIELDS
    | {
        "n_positions": "max_position_embeddings", "dff": "intermediate_size", "use_cache": "use_cache",
        "embd_pdrop": "embedding_dropout", "resid_pdrop": "residual_dropout",
    },
    fixed=BIASED
    | {
        "position_embedding_type": "sinusoidal", "position_config.sinusoid_layout": "halves", "hidden_act": "relu",
        "lm_head_bias": True,
    },
    derive=derive,
    rules=[
        *renames({"w": "embed_tokens", "layernorm": "norm"}, "transformer.", "model."),
        *renames(
            {
                "layernorm1": "attn_norm", "layernorm2": "mlp_norm", "ffn.0": "mlp.up_proj", "ffn.2": "mlp.down_proj",
                "multi_head_attention.dense": "self_attn.o_proj",
            }
            | {f"multi_head_attention.W{x}": f"self_attn.{x}_proj" for x in "qkv"},
            "transformer.h.{i}.",
        ),
    ],
    base_prefix="transformer.",
    tiny=[TINY, TINY | {"tie_word_embeddings": False, "dff": 96}],
)  # fmt: skip
