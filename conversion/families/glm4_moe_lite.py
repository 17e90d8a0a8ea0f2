"""GLM-4.7-Flash (Z.ai 2026): DeepSeek-V3's layer at a small size, values wider than the keys' own part."""

from ..engine.family import Family
from .shared_latent import V3_FIELDS, V3_FIXED, V3_RULES, YARN, listed, restore_listed, tiny_v3

FAMILY = Family(
    fields=V3_FIELDS | {"rope_interleave": "rope_interleave"},
    fixed=V3_FIXED,
    derive=listed,
    restore=restore_listed,
    rules=V3_RULES,
    tiny=[
        tiny_v3(v_head_dim=23, n_group=1, topk_group=1, n_shared_experts=1),
        tiny_v3(q_lora_rank=None, rope_interleave=False, attention_bias=True, rope_parameters=YARN),
        tiny_v3(mlp_layer_types=["sparse", "dense", "sparse"], norm_topk_prob=False, tie_word_embeddings=True),
    ],
)
