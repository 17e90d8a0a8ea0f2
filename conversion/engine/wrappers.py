"""Models around a text model that zoo knows: whatever has the config of one inside its own (`text_models.py`).

The text model is converted by the rules of its own family; all else that the files hold (a vision tower, a projector,
an audio encoder) is kept for converting back. A wrapper with a file in `families/` goes by that file.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo import ZooConfig

from .family import Family, Keys, Theirs
from .plan import Planner
from .registry import WITHIN, family_of, file_name, known_name
from .rules import Keep, Rule
from .text_models import SECTION
from .zoo_side import expected_tensors

# Names of files since transformers 4.52: the body of the text model inside the wrapper's body, the head outside.
_TODAY = "model.language_model."
# Other names of that body: of the Idefics line, and of whole models inside others.
_BODIES = (
    "model.text_model.", "thinker.model.", "vlm.language_model.", "vlm.model.language_model.",
    "model.language_model.model.", "model.model.language_model.model.",
)  # fmt: skip
# What older files have before the names of the whole text model.
_WHOLE = ("language_model.", "language.", "llm.", "thinker.", "vlm.language_model.")
# What transformers 5.23 writes for the layers of two wrappers, whose published files say `layers.`.
_LAYERS = {"kimi_k25": "language_model.model.blocks.", "qianfan_ocr": "language_model.model.encoder.layers."}
# Those of a body whose names have nothing before them (Cosmos 3).
_ROOT = {f"{part}.": f"model.{part}." for part in ("embed_tokens", "layers", "norm")}
# Classes that write text from pictures, sound or both.
_WRITING = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)  # fmt: skip
# A head that is a linear map alone, whatever a text model's own does to its logits.
PLAIN_HEAD = {
    "logits_scaling": 1.0, "final_logit_softcapping": None, "lm_head_bias": False, "suppressed_token_ids": None,
}  # fmt: skip
_THEIR_WORDS = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")


def wrapped(name: str) -> Family:
    """The family of `<wrapper>+<text model>`."""
    wrapper, _, place = name.partition(WITHIN)
    section, _, inner = place.rpartition(".")
    return around(wrapper, inner, section or SECTION)


def around(wrapper: str, inner: str, section: str = SECTION, rules: Sequence[Rule] = ()) -> Family:
    """The family of a wrapper whose config has that of a text model, `inner`, at `section`; `rules` of its files come
    before those of the text model."""
    text = family_of(known_name(inner))
    text = replace(text, rules=partial(with_rules, text, rules))
    return replace(
        text,
        section=section,
        reads=text.reads or inner,
        ties_at_top=not holds_whole_model(wrapper),
        prepare=partial(text_alone, text.prepare, wrapper),
        derive=partial(derive_around, text, wrapper),
        prefixes={_TODAY: text.base_prefix} | text.prefixes,
        also_prefixes=other_prefixes(wrapper, text),
        rules=partial(rules_around, text),
        tiny=(),
    )


def other_prefixes(wrapper: str, text: Family) -> dict[str, str]:
    """Beginnings of names that files of some wrappers have."""
    inside = text.prefixes | text.also_prefixes
    found = {whole + theirs: ours for whole in _WHOLE for theirs, ours in inside.items()}
    found |= dict.fromkeys((*_BODIES, *(whole + "model." for whole in _WHOLE)), text.base_prefix)
    found |= dict.fromkeys(_WHOLE, "") | _ROOT
    if wrapper in _LAYERS:
        found[_LAYERS[wrapper]] = "model.layers."
    return found | text.also_prefixes


def derive_around(text: Family, wrapper: str, theirs: Theirs) -> Keys:
    """What follows from the text model's config, with a plain head where the wrapper has one of its own. Rotation by
    several positions (Qwen2-VL, arXiv 2409.12191) is the ordinary one where all of them are the token's own, as in
    text."""
    keys = text.derive(theirs) if text.derive else {}
    if keys.get("rope_parameters"):
        rotation = keys["rope_parameters"].items()
        keys["rope_parameters"] = {name: said for name, said in rotation if "mrope" not in name and said != "mrope"}
    if not can_tie(wrapper):
        keys |= {"tie_word_embeddings": False}
    return keys if shapes_logits(wrapper) else keys | PLAIN_HEAD


@cache
def can_tie(wrapper: str) -> bool:
    """Whether transformers' class of a wrapper ever makes the head the embedding; True for one that it has not."""
    model_class = class_of_wrapper(wrapper)
    return model_class is None or holds_whole_model(wrapper) or bool(model_class._tied_weights_keys)


@cache
def shapes_logits(wrapper: str) -> bool:
    """Whether transformers' class of a wrapper scales or caps logits as the text model's own class does: it holds that,
    or says so itself. Others have a linear map alone. True for a wrapper that transformers has not."""
    model_class = class_of_wrapper(wrapper)
    if model_class is None or holds_whole_model(wrapper):
        return True
    return any(word in inspect.getsource(model_class.forward) for word in _THEIR_WORDS)


@cache
def holds_whole_model(wrapper: str) -> bool:
    """Whether transformers' class of a wrapper holds a text model with its head, which ties it by its own flag; False
    for a wrapper that transformers has not."""
    model_class = class_of_wrapper(wrapper)
    return model_class is not None and "ForCausalLM" in inspect.getsource(model_class.__init__)


def wrapper_types() -> list[str]:
    """Model types of transformers that write text with more than a text model, or were trained beside one: those among
    which wrappers are."""
    return list(
        dict.fromkeys(name for names in (*_WRITING, auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES) for name in names)
    )


def class_of_wrapper(wrapper: str) -> type | None:
    """transformers' class that writes text with a wrapper; None where it has none."""
    classes = [names[name] for names in _WRITING for name in names if file_name(name) == file_name(wrapper)]
    found = classes[0] if classes else None
    return getattr(transformers, found, None) if isinstance(found, str) else None


def text_alone(prepare: Any, wrapper: str, text: Keys) -> Keys:
    """The fields of a text model without the wrapper's other parts, beside which they stand at the top of an old
    file."""
    key = next((name for name in CONFIG_MAPPING if file_name(name) == file_name(wrapper)), None)
    parts = CONFIG_MAPPING[key].sub_configs if key else {}
    text = {name: value for name, value in text.items() if name not in parts}
    return prepare(text) if prepare else text


def with_rules(text: Family, further: Sequence[Rule], config: ZooConfig) -> list[Rule]:
    """Further rules, then a family's own."""
    return [*further, *text.rules_for(config)]


def rules_around(text: Family, config: ZooConfig) -> list[Rule]:
    """The text model's own rules, and one that keeps what is not of it."""
    expected = expected_tensors(config)
    inside = Planner(replace(text, prefixes={}), config).backward(expected.tensors).outputs
    return [*text.rules_for(config), KeepOthers({*inside, *expected.tied, "lm_head.weight"})]


class KeepOthers(Keep):
    """Sets aside every tensor that has none of some names."""

    def __init__(self, names: Iterable[str]):
        super().__init__("{*}")
        self.theirs = [OtherNames(names)]


class OtherNames:
    """A pattern that matches every name but some."""

    text, placeholders = "{*}", ()

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)

    def match(self, name: str) -> dict[str, str] | None:
        """{} for any other name."""
        return None if name in self.names else {}

    def beginning(self, name: str) -> str:
        """The part of the wrapper that a tensor belongs to: `model.vision_tower.`, `multi_modal_projector.`"""
        first, _, rest = name.partition(".")
        return f"{first}.{rest.partition('.')[0]}." if first == "model" else f"{first}."

    def format(self, values: dict[str, str]) -> str:
        """No name is written from it: raises ValueError."""
        raise ValueError("what is kept has the names of its files")
