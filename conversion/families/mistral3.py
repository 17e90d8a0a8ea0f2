"""Mistral Small 3.1 and Ministral 3 with vision (Mistral AI 2025): the text model of Mistral or of Ministral 3; the
vision tower is kept for converting back."""

from dataclasses import replace

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..engine.family import Keys
from ..engine.rules import Keep
from .ministral3 import FAMILY as TEXT


def prepare(text: Keys) -> Keys:
    """Ministral 3's class reads both; what a Mistral configuration leaves out means something else there."""
    model_type = text.get("model_type", "mistral")
    return text if model_type == "ministral3" else CONFIG_MAPPING[model_type].from_dict(text).to_dict()


FAMILY = replace(
    TEXT,
    section="text_config",
    reads="ministral3",
    prepare=prepare,
    prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    rules=[*TEXT.rules, Keep("vision_tower.{*}"), Keep("multi_modal_projector.{*}")],
    tiny=(),
)
