"""Ministral 3 (Mistral AI 2025): Mistral with a query temperature that grows beyond the trained length.

The temperature's settings stand inside `rope_parameters` there, and in fields of their own here.
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

BETA, LENGTH = "llama_4_scaling_beta", "original_max_position_embeddings"


def derive(theirs: Theirs) -> Keys:
    parameters = rope(theirs)
    parameters.pop("max_position_embeddings", None)
    beta = parameters.pop(BETA, None)
    if beta:
        length = parameters[LENGTH]
        values = {"layers": "all", "scale": beta, "floor_scale": length}
        fields = {f"attn_temperature.{key}": value for key, value in values.items()}
        return fields | {"rope_parameters": parameters}
    if parameters["rope_type"] == "default":
        parameters.pop(LENGTH, None)
    return {"rope_parameters": parameters}


def restore(ours: Ours) -> Keys:
    """Their class needs both numbers; a temperature of scale 0 is none."""
    parameters = restore_rope(ours)
    if ours.attn_temperature["layers"] is None:
        missing = {BETA: 0.0, LENGTH: parameters.get(LENGTH, ours.max_position_embeddings)}
        return {"rope_parameters": parameters | missing}
    temperature = ours.attn_temperature
    return {"rope_parameters": parameters | {BETA: temperature["scale"], LENGTH: temperature["floor_scale"]}}


YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 16.0, LENGTH: 8, "max_position_embeddings": 128,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, BETA: 0.3,
}  # fmt: skip
FAMILY = Family(
    fields=LLAMA_FIELDS | {"sliding_window": "sliding_window"},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    # A published configuration has the whole multimodal one under this model_type.
    prepare=lambda raw: raw.get("text_config", raw),
    tiny=[
        tiny(rope_parameters=YARN, max_position_embeddings=128),
        tiny(rope_parameters=YARN | {BETA: 0.1}, tie_word_embeddings=True, sliding_window=7),
    ],
)
