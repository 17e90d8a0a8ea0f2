"""Kolibri 1 (Aleph Alpha 2026): norms on both sides of each sub-layer, experts selected by their logits and a bias and
weighed by a sigmoid, windows of 513 in four layers of five; only those rotate."""

from ..engine.family import Family
from ..engine.rules import renames
from .exaone4 import derive as exaone4
from .exaone4 import restore as restore_exaone4
from .glm4 import NORMS
from .shared_experts import MOE_FIELDS, QWEN_MOE_RULES, correction_bias, normed, tiny_experts

STORED = {"post_attn_norm": "attn_output_norm", "post_ffn_norm": "mlp_output_norm"}
NAMES = ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob")

FAMILY = Family(
    fields=MOE_FIELDS | {name: name for name in NAMES},
    fixed={
        "block_type": "sandwich_norm", "qk_norm": "rms_norm", "scoring_func": "sigmoid",
        "router.score_after_topk": True, "use_score_correction_bias": True, "precision.router": "float32_linear",
    },
    derive=lambda theirs: exaone4(theirs) | normed(theirs),
    restore=restore_exaone4,
    rules=[*renames(STORED | NORMS), *correction_bias("moe.router.expert_bias"), *QWEN_MOE_RULES],
    tiny=[
        tiny_experts(num_hidden_layers=5, sliding_window=5, shared_expert_intermediate_size=36, norm_topk_prob=True),
        tiny_experts(
            sliding_window=4, layer_types=["sliding_attention"] * 3, shared_expert_intermediate_size=20,
            tie_word_embeddings=True, rms_norm_eps=1e-5,
        ),
    ],
)  # fmt: skip
