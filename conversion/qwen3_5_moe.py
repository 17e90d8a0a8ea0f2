"""Qwen3.5 with experts and vision (Qwen team 2026): its text model; the vision tower is kept for the way back."""

from dataclasses import replace

from .qwen3_5_moe_text import FAMILY as TEXT
from .rules import Keep

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="qwen3_5_moe_text",
    prefixes={"model.language_model.": "model."},
    rules=[Keep("model.visual.{*}"), *TEXT.rules],
    tiny=(),
)
