"""Where the text model stands in the config.json of a larger model, and what its model_type is.

A place is a key, or keys joined by dots: "text_config", "thinker_config.text_config". In old files the fields of the
text model stand at the top, beside `vision_config`.
"""

from copy import deepcopy
from functools import cache
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import BAD_CONFIG

SECTION = "text_config"
# Keys under which a text model stands, and those of a model that holds one.
_SECTIONS = (SECTION, "language_config", "llm_config", "thinker_config", "vlm_config")
# Text models that differ from a family in the name of their configuration class alone.
SAME_TEXT_MODELS = {
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen2_5_omni_text": "qwen2",
    "granite4_vision_text": "granite", "granite_docling_text": "granite",
}  # fmt: skip
# The family that the text model inside another is of when it leaves that: the one whose class runs without it.
ALONE = {
    "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe", "qwen3_omni_moe_text": "qwen3_moe",
    "glm4v_text": "glm4", "glm_ocr_text": "glm4", "glm4v_moe_text": "glm4_moe", "hunyuan_vl_text": "hunyuan_v1_dense",
    "paddleocr_vl_text": "llama", "ernie4_5_vl_moe_text": "ernie4_5_moe",
}  # fmt: skip
# Models that do with a known text model what it alone does not, and so would not be the same without it.
BOTH_WAYS = "its prompt sees itself in both directions, which the text model inside, a decoder, does not"
DRAFTS = "it drafts tokens from the cache of another model and is none without it"
CHOOSES = "its head chooses among the options of a question and writes no text"
REFUSED = {
    "paligemma": BOTH_WAYS, "colpali": BOTH_WAYS, "pi0": BOTH_WAYS, "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS, "jev": CHOOSES,
}  # fmt: skip
# Text models that do another thing inside others than alone.
NOT_INSIDE = {"falcon_h1": "its embeddings are scaled only where it looks them up itself"}

Keys = dict[str, Any]


def text_model_of(raw: Keys) -> tuple[str, str] | None:
    """(its place, its model_type) of the text model in a config.json; None where there is none."""
    wrapper = raw.get("model_type")
    for key in _SECTIONS:
        if isinstance(raw.get(key), dict):
            if deeper := text_model_of(raw[key]):
                return f"{key}.{deeper[0]}", deeper[1]
            inner = raw[key].get("model_type") or default_text_model(wrapper, key)
            return (key, inner) if isinstance(inner, str) else None
    inner = default_text_model(wrapper)
    return (SECTION, inner) if inner and stands_at_the_top(raw) else None


@cache
def default_text_model(wrapper: Any, key: str = SECTION) -> str | None:
    """The model_type that transformers' class of a wrapper gives to the model under `key`; None where it has none."""
    if wrapper not in CONFIG_MAPPING or key not in CONFIG_MAPPING[wrapper].sub_configs:
        return None
    try:
        return getattr(getattr(CONFIG_MAPPING[wrapper](), key, None), "model_type", None)
    except BAD_CONFIG:
        return None


def inside_by_default(wrapper: str) -> tuple[str, str] | None:
    """(place, model_type) of the text model that transformers' class of a wrapper has by default; None without one."""
    for key in _SECTIONS:
        if inner := default_text_model(wrapper, key):
            deeper = inside_by_default(inner)
            return (f"{key}.{deeper[0]}", deeper[1]) if deeper else (key, inner)
    return None


def stands_at_the_top(raw: Keys) -> bool:
    """Whether transformers reads the sizes of the text model from the top of a config.json."""
    sizes = {name: raw[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size") if name in raw}
    try:
        text = getattr(CONFIG_MAPPING[raw["model_type"]].from_dict(deepcopy(raw)), SECTION, None)
    except BAD_CONFIG:
        return False
    return len(sizes) == 3 and all(getattr(text, name, None) == size for name, size in sizes.items())


def part_of(raw: Keys, place: str | None) -> Keys | None:
    """What stands at a place; None where nothing does."""
    for key in place.split(".") if place else [""]:
        raw = raw.get(key)
        if not isinstance(raw, dict):
            return None
    return raw


def holder_of(raw: Keys, place: str | None) -> Keys:
    """What holds the part at a place; all of it where there is none."""
    outer = place.rpartition(".")[0] if place else ""
    return (part_of(raw, outer) if outer else None) or raw


def with_part(raw: Keys, place: str, part: Keys) -> Keys:
    """`raw` with another part at a place."""
    key, _, rest = place.partition(".")
    return raw | {key: with_part(raw.get(key) or {}, rest, part) if rest else part}
