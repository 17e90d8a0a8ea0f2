"""Nemotron 3.5 Transcribe (NVIDIA 2026), the text model: Nemotron-H, whose files name three parts as NeMo does."""

from ..engine.rules import Rule
from ..engine.wrappers import around
from .shared_state_space import LAYER, MIXER

FAMILY = around(
    "nemo_speechlm",
    "nemotron_h",
    rules=[
        Rule(LAYER + "mixer._fp32_params.{A_log|D|dt_bias}", MIXER + "{A_log|D|dt_bias}"),
        *(Rule(f"model.{part}.weight", f"model.{part}.weight") for part in ("embed_tokens", "norm")),
    ],
)
