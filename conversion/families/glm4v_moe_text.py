"""The text model of GLM-4.5V (Z.ai 2025, arXiv 2507.01006): GLM-4.5 Air without norms on queries and keys."""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from .glm4_moe import FAMILY as GLM4_MOE
from .shared_experts import dense_first, leading_dense


def derive(theirs: Theirs) -> Keys:
    mlps = dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)
    return {"rope_parameters": rope(theirs, partial=True), "mlp_layer_types": mlps}


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours), "first_k_dense_replace": leading_dense(ours)}


FAMILY = replace(GLM4_MOE, derive=derive, restore=restore, tiny=())
