"""Gemma 4 with vision and audio (Gemma team 2026): its text model is Gemma 4's; the towers are set aside."""

from dataclasses import replace

from ..engine.rules import Keep
from .gemma4_text import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="gemma4_text",
    prefixes={"model.language_model.": "model."},
    rules=[Keep("model.{vision_tower|audio_tower|embed_vision|embed_audio}.{*}"), *TEXT.rules],
    tiny=(),
)
