"""Models around a text model that zoo knows: whatever has the config of one as its `text_config`.

The text model is converted by the rules of its own family; all else that the files hold (a vision tower, a projector,
an audio encoder) is kept for converting back. A wrapper with a file in `families/` goes by that file.
"""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto

from configuration_zoo import ZooConfig

from .family import Family, Keys, Theirs
from .plan import Planner
from .registry import WITHIN, family_of
from .rules import Keep, Rule
from .zoo_side import expected_tensors

SECTION = "text_config"
# Names of files since transformers 4.52; older ones say `language_model.` before the whole text model.
_TODAY, _BEFORE = "model.language_model.", "language_model."
# The Idefics line's.
_IDEFICS = "model.text_model."
# What a text model's own head does to its logits.
PLAIN_HEAD = {"logits_scaling": 1.0, "final_logit_softcapping": None}
_THEIR_WORDS = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")


def wrapped(name: str) -> Family:
    """The family of `<wrapper>+<text model>`."""
    wrapper, _, inner = name.partition(WITHIN)
    text = family_of(inner)
    return replace(
        text,
        section=SECTION,
        reads=text.reads or inner,
        prepare=partial(without_mrope, text.prepare),
        derive=partial(derive_around, text, wrapper),
        prefixes={_TODAY: text.base_prefix} | text.prefixes,
        also_prefixes={_IDEFICS: text.base_prefix, _BEFORE: ""} | text.also_prefixes,
        rules=partial(rules_around, text),
        tiny=(),
    )


def derive_around(text: Family, wrapper: str, theirs: Theirs) -> Keys:
    """What follows from the text model's config, with a plain head where the wrapper has one of its own."""
    keys = text.derive(theirs) if text.derive else {}
    shaped = any(getattr(theirs, word, None) is not None for word in _THEIR_WORDS)
    return keys | PLAIN_HEAD if shaped and not shapes_logits(wrapper) else keys


@cache
def shapes_logits(wrapper: str) -> bool:
    """Whether transformers' class of a wrapper scales or caps logits as the text model's own class does: it holds that,
    or says so itself. Others have a linear map alone. True for a wrapper that transformers has not."""
    mappings = (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)
    found = next((names[wrapper] for names in mappings if wrapper in names), None)
    if found is None or not hasattr(transformers, found):
        return True
    model_class = getattr(transformers, found)
    says_so = any(word in inspect.getsource(model_class.forward) for word in _THEIR_WORDS)
    return says_so or "ForCausalLM" in inspect.getsource(model_class.__init__)


def without_mrope(prepare: Any, text: Keys) -> Keys:
    """Rotation by several positions (Qwen2-VL, arXiv 2409.12191) is the ordinary one where all of them are the token's
    own, as in text."""
    text = dict(text)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(text.get(key), dict):
            plain = {name: value for name, value in text[key].items() if not name.startswith("mrope")}
            text[key] = {name: "default" if value == "mrope" else value for name, value in plain.items()}
    return prepare(text) if prepare else text


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
