"""GPT-Neo (Black et al. 2021): GPT-2 with local and global layers, no scale on the scores, no bias on q, k and v."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Drop, renames
from .shared_gpt import BIASED, GPT2_FIELDS

LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}
KINDS = {layer_type: kind for kind, layer_type in LAYER_TYPES.items()}
ABSENT = ("n_positions", "n_inner", "embd_pdrop", "resid_pdrop", "attn_pdrop")


def derive(theirs: Theirs) -> Keys:
    layer_types = [LAYER_TYPES[kind] for kind in theirs.attention_layers]
    return {
        "layer_types": layer_types,
        "sliding_window": theirs.window_size if "sliding_attention" in layer_types else None,
    }


def restore(ours: Ours) -> Keys:
    kinds = [[[KINDS[layer_type]], 1] for layer_type in ours.layer_types]
    window = {} if ours.sliding_window is None else {"window_size": ours.sliding_window}
    return {"attention_types": kinds} | window


FAMILY = Family(
    fields={name: ours for name, ours in GPT2_FIELDS.items() if name not in ABSENT}
    | {
        "max_position_embeddings": "max_position_embeddings", "intermediate_size": "intermediate_size",
        "embed_dropout": "embedding_dropout", "resid_dropout": "residual_dropout",
        "attention_dropout": "attention_dropout",
    },
    fixed=BIASED
    | {
        "attention_bias": False, "attention_out_bias": True, "attention_multiplier": 1.0,
        "precision.attention_upcast": True,
        "position_embedding_type": "learned",
    },
    derive=derive,
    restore=restore,
    rules=[
        *renames({"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"}, "transformer.", "model."),
        *renames(
            {
                "ln_1": "attn_norm", "ln_2": "mlp_norm", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
                "attn.attention.out_proj": "self_attn.o_proj",
            }
            | {f"attn.attention.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"},
            "transformer.h.{i}.",
        ),
        Drop("transformer.h.{i}.attn.attention.{bias|masked_bias}"),
    ],
    base_prefix="transformer.",
    tiny=[
        {
            "vocab_size": 101, "hidden_size": 48, "num_layers": 3, "num_heads": 6, "max_position_embeddings": 64,
            "attention_types": [[["local", "global"], 1], [["local"], 1]], "window_size": 5,
        },
        {
            "vocab_size": 101, "hidden_size": 48, "num_layers": 2, "num_heads": 6, "max_position_embeddings": 64,
            "attention_types": [[["global"], 2]], "intermediate_size": 80, "tie_word_embeddings": False,
        },
    ],
)  # fmt: skip
