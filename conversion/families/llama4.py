"""Llama 4 with vision (Meta 2025): its text model; the vision tower is kept for converting back."""

from dataclasses import replace

from ..engine.rules import Keep
from .llama4_text import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    section="text_config",
    ties_at_top=False,
    reads="llama4_text",
    prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    rules=[*TEXT.rules, Keep("vision_model.{*}"), Keep("multi_modal_projector.{*}")],
    tiny=(),
)
