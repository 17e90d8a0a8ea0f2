"""GPT-2 (Radford et al. 2019): learned positions, layer norm before each half, a plain MLP four times as wide."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import Drop, Rule, Split, Transpose, renames
from .shared_gpt import BIASED, GPT2_FIELDS, TINY_GPT2, K, Q, V, require


def derive(theirs: Theirs) -> Keys:
    require(theirs, add_cross_attention=False)
    return {"attention_multiplier": None if theirs.scale_attn_weights else 1.0}


# Conv1D stores its weights [in, out].
RULES = [
    *renames({"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"}, "transformer.", "model."),
    *renames({"ln_1": "attn_norm", "ln_2": "mlp_norm"}, "transformer.h.{i}."),
    Rule("transformer.h.{i}.attn.c_attn.{w}", [Q, K, V], Transpose(), Split("q", "k", "v", dim=0)),
    Rule("transformer.h.{i}.attn.c_proj.{w}", "model.layers.{i}.self_attn.o_proj.{w}", Transpose()),
    Rule("transformer.h.{i}.mlp.c_fc.{w}", "model.layers.{i}.mlp.up_proj.{w}", Transpose()),
    Rule("transformer.h.{i}.mlp.c_proj.{w}", "model.layers.{i}.mlp.down_proj.{w}", Transpose()),
    Drop("transformer.h.{i}.attn.{bias|masked_bias}"),
]

FAMILY = Family(
    fields=GPT2_FIELDS
    | {
        "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn": "precision.attention_upcast",
    },
    fixed=BIASED | {"position_embedding_type": "learned", "initializer.residual_type": "depth"},
    derive=derive,
    restore=lambda ours: {"scale_attn_weights": ours.attention_multiplier is None},
    rules=RULES,
    base_prefix="transformer.",
    tiny=[
        TINY_GPT2,
        TINY_GPT2 | {"n_inner": 80, "activation_function": "relu", "tie_word_embeddings": False},
        TINY_GPT2 | {"scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
        TINY_GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ],
)
