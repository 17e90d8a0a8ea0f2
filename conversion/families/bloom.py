"""BLOOM (Le Scao et al. 2022): ALiBi, a norm on the embeddings, fused projections grouped by head."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from ..errors import ConversionError
from .shared_gpt import BIASED, GPT_FIELDS, TINY_PLAIN, grouped_qkv


def derive(theirs: Theirs) -> Keys:
    if theirs.slow_but_exact and theirs.pretraining_tp > 1:
        raise ConversionError("slow_but_exact=True leaves out biases and is not supported: set it to false.")
    from_norm = theirs.apply_residual_connection_post_layernorm
    # ALiBi has no longest sequence; what they trained on is an extra key.
    return {
        "block_type": "pre_norm_residual" if from_norm else "pre_norm",
        "max_position_embeddings": getattr(theirs, "seq_length", 2048),
    }


def restore(ours: Ours) -> Keys:
    return {
        "apply_residual_connection_post_layernorm": ours.block_type == "pre_norm_residual",
        "seq_length": ours.max_position_embeddings,
    }


FAMILY = Family(
    fields=GPT_FIELDS
    | {
        "use_cache": "use_cache", "hidden_dropout": "residual_dropout", "attention_dropout": "attention_dropout",
    },
    fixed=BIASED | {"position_embedding_type": "alibi", "embedding_norm": True, "hidden_act": "gelu_fast"},
    derive=derive,
    restore=restore,
    rules=[
        *renames(
            {"word_embeddings": "embed_tokens", "word_embeddings_layernorm": "embed_norm", "ln_f": "norm"},
            "transformer.",
            "model.",
        ),
        *renames(
            {
                "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm",
                "self_attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.up_proj",
                "mlp.dense_4h_to_h": "mlp.down_proj",
            },
            "transformer.h.{i}.",
        ),
        grouped_qkv("transformer.h.{i}.self_attention.query_key_value"),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY_PLAIN,
        TINY_PLAIN | {"apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
        TINY_PLAIN | {"num_attention_heads": 4, "layer_norm_epsilon": 1e-3},
    ],
)  # fmt: skip
