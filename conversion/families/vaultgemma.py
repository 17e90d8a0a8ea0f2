"""VaultGemma 1B (Google 2025): Gemma 2 without the norms on the outputs."""

from dataclasses import replace

from ..engine.rules import renames
from .gemma import FIXED
from .gemma2 import FAMILY as GEMMA2
from .shared_common import ROPE_BUFFERS

FAMILY = replace(
    GEMMA2,
    fixed=FIXED,
    rules=[*renames({"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "mlp_norm"}), *ROPE_BUFFERS],
)
