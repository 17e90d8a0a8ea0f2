"""Which families there are: every file of `families/` is one, but what they share; its name is the key."""

import os
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConversionError
from .text_models import NOT_INSIDE, REFUSED, SAME_TEXT_MODELS, SECTION, default_text_model, text_model_of

if TYPE_CHECKING:
    from .family import Family

OWN_TYPE = "zoo"
# Between the name of a wrapper without a file of its own and that of the text model inside it (wrappers.py).
WITHIN = "+"
_FOLDER = Path(__file__).parent.parent / "families"
# A config.json of the first type with this key means the second type, as transformers' AutoConfig reads it; Kimi K3
# calls its text model so too.
REDIRECTS = {"mistral": ("layer_types", "ministral"), "kimi_linear": ("attn_res_block_size", "kimi_k3_text")}


def file_name(model_type: str) -> str:
    """The module that holds a model_type: `openai-gpt` -> `openai_gpt`."""
    return model_type.replace("-", "_")


def known_families() -> list[str]:
    """Every family's file name, found without importing any."""
    return sorted(name.removesuffix(".py") for name in os.listdir(_FOLDER) if _is_family(name))


def _is_family(file: str) -> bool:
    return file.endswith(".py") and not file.startswith(("shared_", "__"))


def is_known(name: str) -> bool:
    """Whether a family has this file name."""
    return f"{name}.py" in os.listdir(_FOLDER) and _is_family(f"{name}.py")


def nearest(name: str) -> str:
    """The three known families whose names are nearest, as a question, and where all of them are listed."""
    known = known_families()
    close = [repr(one) for one in get_close_matches(name, known, n=3)]
    question = f"Did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}? " if close else ""
    return f"{question}`zoo families` lists the {len(known)} that are."


def family_of(model_type: str) -> "Family":
    """The family of a model_type; raises ConversionError with the nearest of what is known."""
    name = file_name(model_type)
    if WITHIN in name:
        return import_module(".wrappers", __package__).wrapped(model_type)
    if not is_known(name):
        raise ConversionError(f"model_type {model_type!r} is not known. {nearest(name)}")
    return import_module(f"..families.{name}", __package__).FAMILY


def model_type_of(raw: dict[str, Any], where: str = "config.json") -> str:
    """The model_type of a config.json, redirected as transformers does, or the variant for the text model inside it.
    Raises ConversionError where there is none, and for a model whose text model zoo cannot be."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ConversionError(f"{where} has no model_type, the name of its family: `zoo families` lists those known.")
    key, instead = REDIRECTS.get(model_type, (None, model_type))
    if key in raw and is_known(instead):
        return instead
    found = variant_of(model_type, raw)
    inside = text_model_of(raw) if WITHIN not in found and found == model_type else None
    if inside and not (is_known(file_name(found)) and _is_for(found, inside[1])):
        raise ConversionError(_why_refused(model_type, *inside))
    return found


def _is_for(wrapper: str, inner: str) -> bool:
    """Whether the file of a family is for this text model: the one it reads, or its wrapper's usual one."""
    family = family_of(wrapper)
    return family.section is None or inner in (family.reads, default_text_model(wrapper))


def _why_refused(wrapper: str, place: str, inner: str) -> str:
    """One sentence about a model around a text model that cannot be converted."""
    if wrapper in REFUSED:
        return f"model_type {wrapper!r} cannot be converted: {REFUSED[wrapper]}."
    if inner in NOT_INSIDE:
        return f"model_type {wrapper!r} cannot be converted with {inner!r} inside: {NOT_INSIDE[inner]}."
    return f"model_type {wrapper!r} is not known, nor is {inner!r}, its {place}. {nearest(inner)}"


def variant_of(model_type: str, raw: dict[str, Any] | None) -> str:
    """`<model_type>_<text model's type>` where that is a family and `raw` is of it: a wrapper with several text models
    of different layouts, and `<model_type>+<text model's type>` for a wrapper without a file, with the place of the
    text model before that type where it is not `text_config`; else model_type."""
    if raw is None or file_name(raw.get("model_type") or "") != file_name(model_type):
        return model_type
    place, inner = text_model_of(raw) or (SECTION, None)
    variant = file_name(f"{model_type}_{inner}")
    if inner and is_known(variant):
        return variant
    known_inside = inner is not None and is_known(file_name(known_name(inner)))
    has_file = is_known(file_name(model_type)) and _is_for(model_type, inner)
    if has_file or not known_inside or model_type in REFUSED or inner in NOT_INSIDE:
        return model_type
    return f"{model_type}{WITHIN}{inner}" if place == SECTION else f"{model_type}{WITHIN}{place}.{inner}"


def spoken(name: str) -> str:
    """A family's name in a sentence: the model_type that its config.json says, without the text model inside it."""
    return name.partition(WITHIN)[0]


def known_name(inner: str) -> str:
    """The family that a text model inside another model is of, by its own model_type."""
    return SAME_TEXT_MODELS.get(inner, inner)
