"""DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv 2512.02556): DeepSeek-V3 in which an indexer chooses the keys of a query."""

from ..engine.family import Family
from .shared_latent import INDEX_FIELDS, V3_FIELDS, V3_FIXED, V3_RULES, YARN, listed, restore_listed, tiny_indexed

FAMILY = Family(
    fields=V3_FIELDS | INDEX_FIELDS,
    # Channels pair up differently in attention and in its indexer.
    fixed=V3_FIXED | {"rope_interleave": True, "indexer.rope_interleave": False},
    derive=listed,
    restore=restore_listed,
    rules=V3_RULES,
    tiny=[
        tiny_indexed(first_k_dense_replace=1, rope_parameters=YARN),
        tiny_indexed(mlp_layer_types=["sparse", "dense", "sparse"], attention_bias=True, norm_topk_prob=False),
        tiny_indexed(first_k_dense_replace=2, index_topk=50, n_shared_experts=1, tie_word_embeddings=True),
    ],
)
