"""Fuyu 8B (Adept 2023), the language model: Persimmon; the projection of image patches is kept for converting back."""

from dataclasses import replace

from ..engine.rules import Keep
from .persimmon import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="persimmon",
    prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    rules=[Keep("vision_embed_tokens.{*}"), *TEXT.rules],
    tiny=(),
)
