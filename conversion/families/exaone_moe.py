"""K-EXAONE (LG AI Research 2025): DeepSeek-V3's routing over EXAONE 4's attention, with norms before the sub-layers."""

from ..engine.family import Family
from .exaone4 import derive as exaone4
from .exaone4 import restore as restore_exaone4
from .shared_experts import (
    GROUPS,
    MTP_HEADS,
    QWEN_MOE_RULES,
    SIGMOID_FIELDS,
    SIGMOID_ROUTER,
    correction_bias,
    tiny_experts,
)

FAMILY = Family(
    fields=SIGMOID_FIELDS
    | {
        "num_experts": "num_experts", "num_shared_experts": "n_shared_experts",
        "mlp_layer_types": "mlp_layer_types",
    },
    fixed=SIGMOID_ROUTER | {"qk_norm": "rms_norm"},
    derive=exaone4,
    restore=restore_exaone4,
    rules=[*MTP_HEADS, *correction_bias("mlp.e_score_correction_bias"), *QWEN_MOE_RULES],
    tiny=[
        tiny_experts(num_hidden_layers=5, sliding_window=5, num_shared_experts=2),
        tiny_experts(
            **GROUPS, sliding_window=4, layer_types=["full_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["sparse", "dense", "sparse"], norm_topk_prob=False, routed_scaling_factor=1.3,
            tie_word_embeddings=True, rms_norm_eps=1e-6,
        ),
    ],
)  # fmt: skip
