"""XGLM (Lin et al. 2022): GPT-3's block with sinusoids of tensor2tensor from position two, scaled embeddings."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import renames
from ..errors import ConversionError
from .shared_gpt import BIASED, GPT_FIELDS, require

# The sinusoid of position 0; the rows before it are read by none.
FIRST_ROW = 2
TINY = {
    "vocab_size": 101, "d_model": 48, "num_layers": 3, "attention_heads": 6, "max_position_embeddings": 64,
    "ffn_dim": 80,
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    require(theirs, add_cross_attention=False)
    if (theirs.pad_token_id or 0) >= FIRST_ROW:
        raise ConversionError(
            f"pad_token_id={theirs.pad_token_id} is not supported: transformers empties that row of the sinusoids, "
            f"which from {FIRST_ROW} on is one of a position."
        )
    scale = theirs.d_model**0.5 if theirs.scale_embedding else 1.0
    return {"embedding_multiplier": scale, "embedding_dropout": theirs.dropout}


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if name not in ("layer_norm_epsilon", "initializer_range")}
    | {
        "max_position_embeddings": "max_position_embeddings", "use_cache": "use_cache", "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act", "init_std": "initializer_range", "dropout": "residual_dropout",
        "attention_dropout": "attention_dropout",
    },
    fixed=BIASED
    | {
        "norm_eps": 1e-5, "position_embedding_type": "sinusoidal", "position_config.sinusoid_layout": "closed_halves",
        "position_config.offset": FIRST_ROW,
    },
    derive=derive,
    restore=lambda ours: {"scale_embedding": ours.embedding_multiplier != 1.0},
    rules=[
        *renames({"layer_norm": "norm"}, "model.", "model."),
        *renames(
            {
                "self_attn_layer_norm": "attn_norm", "final_layer_norm": "mlp_norm", "fc1": "mlp.up_proj",
                "fc2": "mlp.down_proj", "self_attn.out_proj": "self_attn.o_proj",
            }
        ),
    ],
    tiny=[TINY, TINY | {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"}],
)  # fmt: skip
