"""Gemma 3 with vision (Gemma team 2025): its text model is Gemma 3's; the vision tower is kept for converting back."""

from dataclasses import replace

from ..engine.rules import Keep
from .gemma3_text import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    # The head outside caps no logits.
    derive=lambda theirs: TEXT.derive(theirs) | {"final_logit_softcapping": None},
    section="text_config",
    reads="gemma3_text",
    prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    rules=[*TEXT.rules, Keep("vision_tower.{*}"), Keep("multi_modal_projector.{*}")],
    tiny=(),
)
