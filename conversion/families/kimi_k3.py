"""Kimi K3 (Moonshot AI 2026): its text model between a vision tower and a projector, which are set aside."""

from dataclasses import replace

from ..engine.rules import Keep
from .kimi_k3_text import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="kimi_linear",
    ties_at_top=False,
    architecture="KimiK3ForConditionalGeneration",
    prefixes={"language_model.model.": "model.", "language_model.": ""},
    rules=[Keep("{vision_tower|mm_projector}.{*}"), *TEXT.rules],
    tiny=(),
)
