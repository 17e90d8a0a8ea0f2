"""Mistral Small 4 with vision (Mistral AI 2026), a `mistral3` folder around a text model of the type `mistral4`; the
vision tower is kept for converting back."""

from dataclasses import replace

from ..engine.rules import Keep
from .mistral3 import FAMILY as WRAPPER
from .mistral4 import FAMILY as TEXT

FAMILY = replace(
    TEXT,
    section="text_config",
    reads="mistral4",
    prefixes=WRAPPER.prefixes,
    rules=[*TEXT.rules, Keep("vision_tower.{*}"), Keep("multi_modal_projector.{*}")],
    architecture=None,
    oracle=None,
    tiny=(),
)
