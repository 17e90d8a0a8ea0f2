"""BioGPT (Luo et al. 2022): OPT's block with scaled embeddings; positions start at row two, padding counts."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import Rule, renames
from .shared_gpt import BIASED, GPT_FIELDS, TINY_PLAIN

TINY = TINY_PLAIN | {"intermediate_size": 80, "max_position_embeddings": 64}


def derive(theirs: Theirs) -> Keys:
    scale = theirs.hidden_size**0.5 if theirs.scale_embedding else 1.0
    return {"embedding_multiplier": scale, "embedding_dropout": theirs.hidden_dropout_prob}


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if name != "layer_norm_epsilon"}
    | {name: name for name in ("intermediate_size", "hidden_act", "max_position_embeddings", "use_cache")}
    | {"hidden_dropout_prob": "residual_dropout", "attention_probs_dropout_prob": "attention_dropout"},
    fixed=BIASED | {"norm_eps": 1e-5, "position_embedding_type": "learned", "position_config.offset": 2},
    derive=derive,
    restore=lambda ours: {"scale_embedding": ours.embedding_multiplier != 1.0},
    rules=[
        Rule("output_projection.weight", "lm_head.weight"),
        *renames({"layer_norm": "norm"}, "biogpt.", "model."),
        *renames({name: name for name in ("embed_tokens", "embed_positions")}, "biogpt.", "model."),
        *renames(
            {
                "self_attn_layer_norm": "attn_norm", "final_layer_norm": "mlp_norm", "fc1": "mlp.up_proj",
                "fc2": "mlp.down_proj", "self_attn.out_proj": "self_attn.o_proj",
            }
            | {f"self_attn.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"},
            "biogpt.layers.{i}.",
        ),
    ],
    base_prefix="biogpt.",
    tiny=[TINY, TINY | {"scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu"}],
)  # fmt: skip
