"""Which families there are: every file of `families/` is one, but what they share; its name is the key."""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConversionError

if TYPE_CHECKING:
    from .family import Family

OWN_TYPE = "zoo"
_FOLDER = Path(__file__).parent.parent / "families"
# A config.json of the first type with this key means the second type, as transformers' AutoConfig reads it.
REDIRECTS = {"mistral": ("layer_types", "ministral")}
# What a family was called before transformers had it; its files need more than another name.
FORMER_NAMES = {
    "RefinedWeb": "a 'falcon' with new_decoder_architecture: true, and num_kv_heads for n_head_kv",
    "RefinedWebModel": "a 'falcon'",
}


def file_name(model_type: str) -> str:
    """The module that holds a model_type: `openai-gpt` -> `openai_gpt`."""
    return model_type.replace("-", "_")


def known_families() -> list[str]:
    """Every family's file name, found without importing any."""
    names = (path.stem for path in _FOLDER.glob("*.py"))
    return sorted(name for name in names if not name.startswith(("shared_", "__")))


def is_known(name: str) -> bool:
    """Whether a family has this file name."""
    return name in known_families()


def family_of(model_type: str) -> "Family":
    """The family of a model_type; raises ConversionError with the list of what is known."""
    name = file_name(model_type)
    if not is_known(name):
        known = known_families()
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if model_type in FORMER_NAMES:
            hint = f" It is {FORMER_NAMES[model_type]} today: change config.json."
        raise ConversionError(f"model_type {model_type!r} is not known.{hint} Known are: {', '.join(known)}.")
    return import_module(f"..families.{name}", __package__).FAMILY


def model_type_of(raw: dict[str, Any], where: str = "config.json") -> str:
    """The model_type of a config.json, redirected as transformers does, or the variant for the text model inside it.
    Raises ConversionError where there is none."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ConversionError(f"{where} has no model_type: one of {', '.join(known_families())} is needed.")
    key, instead = REDIRECTS.get(model_type, (None, model_type))
    if key in raw and is_known(instead):
        return instead
    return variant_of(model_type, raw)


def variant_of(model_type: str, raw: dict[str, Any] | None) -> str:
    """`<model_type>_<text model's type>` where that is a family and `raw` is of it: a wrapper with several text models
    of different layouts; else model_type."""
    if raw is None or file_name(raw.get("model_type") or "") != file_name(model_type):
        return model_type
    text = raw.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    variant = file_name(f"{model_type}_{inner}")
    return variant if inner and is_known(variant) else model_type
