"""A.X K2 (SK Telecom 2026): DeepSeek-V3.2 with gates on norms and on what attention gives; queries and gate read their
latent behind its norm and in front of it."""

from dataclasses import replace

from ..engine.family import Keys, Theirs
from ..engine.rules import renames
from .deepseek_v32 import FAMILY as V32
from .shared_latent import V3_FIXED, YARN, listed, tiny_indexed

BLOCKS = {"sparse": "gated_norm", "dense": "gated_attn_norm"}
NAMES = {"norm": "norm", "W_down": "a_proj", "W_up": "b_proj"}
GATED = {
    f"{theirs}.{a}": f"{ours}.{b}"
    for theirs, ours in {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}.items()
    for a, b in NAMES.items()
}


def derive(theirs: Theirs) -> Keys:
    blocks = [BLOCKS[mlp] for mlp in theirs.mlp_layer_types]
    return listed(theirs) | {
        "block_type": blocks,
        "router.group_mask_value": None if theirs.n_group is None else "zero",
    }


FAMILY = replace(
    V32,
    fields=V32.fields | {"gated_norm_rank": "block_config.gated_norm_rank"},
    fixed=V3_FIXED
    | {
        "rope_interleave": True, "indexer.rope_interleave": False, "attn_output_gate": "query",
        "mla_config.raw_query_latent": True,
    },
    derive=derive,
    rules=[*renames(GATED), *V32.rules],
    tiny=[
        tiny_indexed(first_k_dense_replace=1, gated_norm_rank=7, n_group=None, topk_group=None, rope_parameters=YARN),
        tiny_indexed(
            mlp_layer_types=["sparse", "dense", "sparse"], gated_norm_rank=5, attention_bias=True,
            norm_topk_prob=False, index_topk=50, tie_word_embeddings=True,
        ),
    ],
)  # fmt: skip
