"""Configs of other families for the page: transformers' config classes and the families' own rules, translated."""

import dataclasses
import json
import math
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo import ZooConfig
from configuration_zoo.field_needs import UnreadField, is_read
from conversion.engine import config_bridge, registry, their_config, wrappers
from conversion.engine.text_models import (
    SAME_TEXT_MODELS,
    default_text_model,
    inside_by_default,
    stands_at_the_top,
    with_part,
)
from conversion.errors import BAD_CONFIG, ConversionError, one_line
from conversion.formats.schemes import KEYS

from .gathered import Gathered
from .rules import outside

TIE = "tie_word_embeddings"
SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "vocab_size": 111}
# What the page has in its place: static/foreign.js, or what is written below.
GIVEN = [
    (ConversionError, "ConversionError"), (PreTrainedConfig, "Foreign"), (SubConfigSpec, "subConfig"),
    (BAD_CONFIG, "BAD_CONFIG"), (one_line, "oneLine"), (ZooConfig, "ZooConfig"), (UnreadField, "UnreadField"),
    (is_read, "is_read"), (math.sqrt, "Math.sqrt"), (dataclasses.MISSING, "MISSING"), (typing.Literal, "null"),
    (their_config.built, "built"), (their_config.switch_off, "switchOff"), (their_config.is_tied, "isTied"),
    (their_config.class_of, "classOf"), (registry.is_known, "isKnown"), (registry.family_of, "familyOf"),
    (registry.known_families, "knownFamilies"), (default_text_model, "defaultTextModel"),
    (stands_at_the_top, "standsAtTheTop"),
    (wrappers.can_tie, "canTie"), (CONFIG_MAPPING, "mapping"), (wrappers.text_alone, "textAlone"),
    (wrappers.shapes_logits, "shapesLogits"),
    (config_bridge.head_of, "headOf"), (config_bridge.labels_of, "labelsOf"),
]  # fmt: skip


def families() -> str:
    """The module families.js, which exports `imported(config.json)`."""
    gathered = Gathered(GIVEN, outside())
    functions = {
        "$file": registry.file_name, "$nearest": registry.nearest, "$known": registry.known_name,
        "$type": registry.model_type_of, "$read": their_config.their_config, "$around": wrappers.derive_around,
        "$import": config_bridge.imported,
    }  # fmt: skip
    found = {name: gathered.of(what) for name, what in functions.items()}
    table = {name: gathered.of(registry.family_of(name)) for name in registry.known_families()}
    of_family = {name: gathered.of(class_of(name)) for name in table}
    inside = {
        "mistral",
        *SAME_TEXT_MODELS,
        *(family.reads for family in map(registry.family_of, table) if family.reads),
    }
    classes = {name: gathered.of(CONFIG_MAPPING[name]) for name in sorted(inside) if name in CONFIG_MAPPING}
    written = {
        "library": ", ".join(sorted(gathered.used)),
        "wrappers": json.dumps(wrapper_table()),
        "schemes": json.dumps(KEYS),
        "lines": "\n".join([*gathered.lines, *(f"const {name} = {said};" for name, said in found.items())]),
        "classes": ", ".join(f'"{name}": {said}' for name, said in classes.items()),
        "families": ", ".join(f'"{name}": {{ ...{said}, cls: {of_family[name]} }}' for name, said in table.items()),
    }
    page = Path(__file__).with_name("static").joinpath("families.js").read_text("utf-8")
    return re.sub("@(\\w+)@", lambda found: written[found[1]], page)


def class_of(name: str) -> type:
    """The config class of a family."""
    return their_config.class_of(name, registry.family_of(name))


@cache
def wrapper_table() -> dict[str, dict[str, Any]]:
    """{model_type: what transformers' class of a wrapper says of the text model inside}."""
    known = {registry.file_name(name): name for name in CONFIG_MAPPING}
    found = {}
    for name in known.values():
        place, inner = inside_by_default(name) or (None, None)
        if inner is None or not registry.is_known(registry.file_name(registry.known_name(inner))):
            continue
        sub = CONFIG_MAPPING[name].sub_configs
        parts = {key: default_text_model(name, key) for key in sub}
        found[name] = {
            "place": place, "parts": {key: one for key, one in parts.items() if one}, "others": list(sub),
            "top": at_top(name), "tied": [[tied(name, place, inner, top, own) for own in SAID] for top in SAID],
            "ties": wrappers.can_tie(name), "shapes": wrappers.shapes_logits(name),
            "whole": wrappers.holds_whole_model(name),
        }  # fmt: skip
    return found


SAID = (None, False, True)


def tied(name: str, place: str, inner: str, top: bool | None, own: bool | None) -> bool:
    """Whether the class of a wrapper ties the head by what stands at the top and in its text model."""
    text = {"model_type": inner} | ({} if own is None else {TIE: own})
    raw = with_part({"model_type": name} | ({} if top is None else {TIE: top}), place, text)
    try:
        return bool(getattr(CONFIG_MAPPING[name].from_dict(raw), TIE, False))
    except (StrictDataclassError, *BAD_CONFIG):
        return bool(top if top is not None else own)


def at_top(name: str) -> bool:
    """Whether the class of a wrapper reads the sizes of its text model from the top of an old file."""
    return stands_at_the_top({"model_type": name} | SIZES)
