"""GLM-5 and 5.1 (Z.ai 2026, arXiv 2603.12201): DeepSeek-V3.2 in which layers may share what one indexer chose."""

from ..engine.family import Family
from .shared_latent import INDEX_FIELDS, V3_FIELDS, V3_FIXED, V3_RULES, YARN, listed, restore_listed, tiny_indexed

FAMILY = Family(
    fields=V3_FIELDS | INDEX_FIELDS | {"indexer_types": "indexer_types"},
    fixed=V3_FIXED | {"rope_interleave": True, "indexer.rope_interleave": True},
    derive=listed,
    restore=restore_listed,
    rules=V3_RULES,
    tiny=[
        tiny_indexed(first_k_dense_replace=1, num_hidden_layers=4, indexer_types=["full", "shared", "full", "shared"]),
        tiny_indexed(first_k_dense_replace=2, n_group=1, topk_group=1, n_shared_experts=1, rope_parameters=YARN),
        tiny_indexed(
            num_hidden_layers=5, index_topk_freq=2, v_head_dim=23, attention_bias=True, tie_word_embeddings=True,
        ),
    ],
)  # fmt: skip
