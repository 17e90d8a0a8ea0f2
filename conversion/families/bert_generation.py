"""BERT for generation (Rothe et al. 2020) as a decoder of its own: post-norm, learned positions, a norm on the
embeddings, no last norm."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import Keep, Rule, renames
from .shared_gpt import BIASED, GPT_FIELDS, TINY_PLAIN, require

LAYER = "bert.encoder.layer.{i}."
TINY = TINY_PLAIN | {"intermediate_size": 80, "max_position_embeddings": 64, "is_decoder": True}


def derive(theirs: Theirs) -> Keys:
    require(theirs, add_cross_attention=False)
    return {
        "use_bidirectional_attention": not theirs.is_decoder,
        "embedding_dropout": theirs.hidden_dropout_prob,
    }


FAMILY = Family(
    fields={name: ours for name, ours in GPT_FIELDS.items() if ours != "norm_eps"}
    | {name: name for name in ("intermediate_size", "hidden_act", "max_position_embeddings", "use_cache")}
    | {
        "layer_norm_eps": "norm_eps", "hidden_dropout_prob": "residual_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    fixed=BIASED
    | {
        "block_type": "post_norm", "position_embedding_type": "learned", "embedding_norm": True, "final_norm": False,
        "lm_head_bias": True,
    },
    derive=derive,
    restore=lambda ours: {"is_decoder": not ours.use_bidirectional_attention},
    rules=lambda config: [
        *renames(
            {
                **{f"attention.self.{x}": f"self_attn.{x[0]}_proj" for x in ("query", "key", "value")},
                "attention.output.dense": "self_attn.o_proj", "attention.output.LayerNorm": "attn_output_norm",
                "intermediate.dense": "mlp.up_proj", "output.dense": "mlp.down_proj",
                "output.LayerNorm": "mlp_output_norm",
            },
            theirs=LAYER,
        ),
        Rule("bert.embeddings.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule("bert.embeddings.position_embeddings.weight", "model.embed_positions.weight"),
        Rule("bert.embeddings.LayerNorm.{w}", "model.embed_norm.{w}"),
        Rule("lm_head.decoder.weight", "lm_head.weight"),
        # The second name of one bias, or else a second bias, and then the one that is added.
        *([] if config.tie_word_embeddings else [Rule("lm_head.decoder.bias", "lm_head.bias"), Keep("lm_head.bias")]),
    ],
    base_prefix="bert.",
    tiny=[TINY, TINY | {"layer_norm_eps": 1e-5, "hidden_act": "relu"}],
)  # fmt: skip
