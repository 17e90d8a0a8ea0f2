"""dots.llm1 (rednote 2025): DeepSeek-V3's routing over Qwen3's attention; the upper layers may slide."""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from .glm4_moe import FAMILY as GLM
from .glm4_moe import TINY
from .shared_common import restore_window_fields, window_fields
from .shared_experts import GROUPS, SIGMOID_ROUTER, dense_first, leading_dense


def derive(theirs: Theirs) -> Keys:
    mlps = dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)
    return {"rope_parameters": rope(theirs), "mlp_layer_types": mlps} | window_fields(theirs)


def restore(ours: Ours) -> Keys:
    return {
        "rope_parameters": restore_rope(ours),
        "first_k_dense_replace": leading_dense(ours),
    } | restore_window_fields(ours)


FAMILY = replace(
    GLM,
    fixed=SIGMOID_ROUTER | {"qk_norm": "rms_norm"},
    derive=derive,
    restore=restore,
    tiny=[
        TINY | GROUPS | {"norm_topk_prob": True, "sliding_window": 5, "max_window_layers": 1},
        TINY | {"attention_bias": True, "first_k_dense_replace": 1, "tie_word_embeddings": True, "n_shared_experts": 1},
    ],
)
