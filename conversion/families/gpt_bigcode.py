"""GPTBigCode (Allal et al. 2023; Li et al. 2023, SantaCoder and StarCoder): GPT-2 with one key-value head."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Drop, renames
from .gpt2 import derive as gpt2_scale
from .shared_gpt import BIASED, GPT2_FIELDS, TINY_GPT2, grouped_qkv


def derive(theirs: Theirs) -> Keys:
    return gpt2_scale(theirs) | {"num_key_value_heads": 1 if theirs.multi_query else theirs.num_attention_heads}


def restore(ours: Ours) -> Keys:
    return {"scale_attn_weights": ours.attention_multiplier is None, "multi_query": ours.num_key_value_heads == 1}


FAMILY = Family(
    fields=GPT2_FIELDS,
    fixed=BIASED | {"position_embedding_type": "learned"},
    derive=derive,
    restore=restore,
    rules=[
        *renames({"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"}, "transformer.", "model."),
        *renames(
            {
                "ln_1": "attn_norm", "ln_2": "mlp_norm", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
                "attn.c_proj": "self_attn.o_proj",
            },
            "transformer.h.{i}.",
        ),
        grouped_qkv("transformer.h.{i}.attn.c_attn"),
        Drop("transformer.h.{i}.attn.{bias|masked_bias}"),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY_GPT2,
        TINY_GPT2 | {"multi_query": False, "n_inner": 80, "tie_word_embeddings": False},
        TINY_GPT2 | {"scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
    ],
)  # fmt: skip
