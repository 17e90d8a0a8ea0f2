"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv 2412.19437): latent attention, experts in groups behind a sigmoid router
whose selection carries a bias."""

from ..engine.family import Family
from .shared_latent import V3_FIELDS, V3_FIXED, V3_RULES, YARN, leading, restore_leading, tiny_v3

FAMILY = Family(
    fields=V3_FIELDS | {"rope_interleave": "rope_interleave"},
    fixed=V3_FIXED,
    derive=leading,
    # Further heads are set aside; a model that never had any must not promise them.
    restore=lambda ours: restore_leading(ours) | {"num_nextn_predict_layers": 0},
    rules=V3_RULES,
    tiny=[
        tiny_v3(first_k_dense_replace=1, rope_parameters=YARN),
        tiny_v3(
            first_k_dense_replace=2, q_lora_rank=None, rope_interleave=False, attention_bias=True, n_shared_experts=1,
            norm_topk_prob=False, routed_scaling_factor=1.7, n_group=1, topk_group=1, tie_word_embeddings=True,
        ),
        tiny_v3(first_k_dense_replace=0, rope_parameters=YARN | {"mscale_all_dim": 0.0}, rms_norm_eps=1e-5),
    ],
)  # fmt: skip
