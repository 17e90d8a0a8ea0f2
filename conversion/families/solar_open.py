"""Solar Open 100B (Upstage 2025): GLM-4.5's routing in every layer, over attention that rotates the whole head."""

from dataclasses import replace

from ..engine.family import restore_rope, rope
from .glm4_moe import FAMILY as GLM
from .shared_experts import GROUPS, QWEN_MOE_RULES, tiny_experts

TINY = tiny_experts(intermediate_size=..., num_experts=..., n_routed_experts=10, n_shared_experts=2)

FAMILY = replace(
    GLM,
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=QWEN_MOE_RULES,
    tiny=[
        TINY | {"routed_scaling_factor": 1.7, "attention_bias": True},
        TINY | GROUPS | {"norm_topk_prob": False, "tie_word_embeddings": True, "n_shared_experts": 1},
    ],
)
