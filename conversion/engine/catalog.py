"""What conversion knows, family by family: which models, whether they stand inside others, which flags they set."""

from functools import cache
from importlib import import_module
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from configuration_zoo import ZooConfig
from description_zoo.architecture import architecture

from ..errors import ConversionError
from ..formats.schemes import formats
from .config_bridge import import_config
from .registry import family_of, file_name, is_known, known_families, known_name
from .text_models import REFUSED, inside_by_default, with_part
from .wrappers import wrapper_types

# Numbers of a model, which say nothing of its concepts.
_SIZES = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "norm_eps", "rope_parameters",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip

# Sizes for the few classes of text models whose defaults lack some, or have heads that do not divide hidden_size.
_UNSAID = {"hidden_size": 2048, "num_attention_heads": 16, "num_experts_per_tok": 6}


def catalog() -> dict[str, Any]:
    """{"families": {model_type: facts}, "wrappers": model types of transformers that hold one of them, "formats": how
    their weights may be stored}. Every family's configuration is built."""
    return {
        "families": {model_type_of(name): facts(name) for name in known_families()},
        "wrappers": wrappers(),
        "formats": ["float32", "bfloat16", "float16", *formats()],
    }


def facts(name: str) -> dict[str, Any]:
    """`models`: what they are and where published; `wrapper`: whether the text model stands inside another; `concepts`:
    the flags that a model of the family's defaults sets, without its sizes. Raises ConversionError for an unknown
    one."""
    if is_wrapper(name):
        inner = _inner_type(name)
        said = f"Models with another one's text model inside, by default {inner}: it is converted, all else is kept."
        return {"models": said, "wrapper": True, "concepts": concepts(inner)}
    if name in REFUSED:
        raise ConversionError(f"model_type {name!r} cannot be converted: {REFUSED[name]}.")
    family = family_of(name)
    said = import_module(f"..families.{file_name(name)}", __package__).__doc__ or ""
    return {"models": " ".join(said.split()), "wrapper": family.section is not None, "concepts": concepts(name)}


def concepts(name: str) -> dict[str, Any]:
    """{flag: value} of what a family's default model sets otherwise than ZooConfig does; a list as its different
    entries."""
    ours = architecture(usual_config(name))
    default = architecture(ZooConfig(num_hidden_layers=ours["num_hidden_layers"]))
    found = {}
    for flag, value in ours.items():
        if flag not in _SIZES and value is not None and value != default.get(flag):
            found[flag] = list(dict.fromkeys(value)) if _is_plain_list(value) else value
    return found


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str | int | float | None) for entry in value)


def usual_config(name: str) -> ZooConfig:
    """The model that their configuration class describes by default; where that is none, the smallest of the tests."""
    family, model_type = family_of(name), model_type_of(name)
    whole, inner = {"model_type": model_type}, {"model_type": family.reads or model_type}
    try:
        return import_config(with_part(whole, family.section, inner) if family.section else whole)
    except ConversionError:
        tiny = dict(family.tiny[0]) if family.tiny else _UNSAID
        return import_config(with_part(whole, family.section, inner | tiny) if family.section else whole | tiny)


def model_type_of(name: str) -> str:
    """`openai_gpt` -> `openai-gpt`: the spelling in a config.json."""
    own = family_of(name).config_class if is_known(name) and family_of(name).section is None else None
    return own.model_type if own else _spellings().get(name, name)


@cache
def _spellings() -> dict[str, str]:
    return {file_name(model_type): model_type for model_type in CONFIG_MAPPING_NAMES}


def wrappers() -> list[str]:
    """Model types of transformers without a file in `families/` that hold a text model of a known family, by what their
    default configuration says. Each of them is built for that."""
    return sorted(name for name in wrapper_types() if is_wrapper(name))


def is_wrapper(model_type: str) -> bool:
    """Whether transformers' models of a type hold by default a text model that zoo knows, and no file says how."""
    return model_type not in REFUSED and _inner_type(model_type) is not None


@cache
def _inner_type(model_type: str) -> str | None:
    """The known family of the text model in a wrapper's default; None where it has none, or a file of its own."""
    if is_known(file_name(model_type)):
        return None
    _, inner = inside_by_default(model_type) or (None, "")
    return known_name(inner) if is_known(file_name(known_name(inner))) else None
