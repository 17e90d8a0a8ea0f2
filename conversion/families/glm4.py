"""GLM-4-0414 (Z.ai 2025): GLM with norms on both sides of each sub-layer."""

from dataclasses import replace

from ..engine.rules import renames
from .glm import FAMILY as GLM
from .glm import GATE_UP
from .shared_common import ROPE_BUFFERS

NORMS = {
    "input_layernorm": "attn_norm", "post_self_attn_layernorm": "attn_output_norm",
    "post_attention_layernorm": "mlp_norm", "post_mlp_layernorm": "mlp_output_norm",
}  # fmt: skip

FAMILY = replace(
    GLM,
    fixed=GLM.fixed | {"block_type": "sandwich_norm"},
    rules=[GATE_UP, *renames(NORMS), *ROPE_BUFFERS],
)
