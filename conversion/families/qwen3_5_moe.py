"""Qwen3.5 with experts and vision (Qwen team 2026): its text model; the vision tower is kept for converting back."""

from dataclasses import replace

from .qwen3_5_moe_text import FAMILY as TEXT
from .qwen3_5_text import WRAPPED

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="qwen3_5_moe_text",
    prefixes=WRAPPED,
    also_prefixes={},
    tiny=(),
)
