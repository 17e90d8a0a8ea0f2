"""What stands on a model's body, as config.json says: a head over the vocabulary, one over labels, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto import modeling_auto

from ..errors import ConversionError

CAUSAL, BODY = "ZooForCausalLM", "ZooModel"
_LABELS = ("id2label", "label2id", "problem_type")


@dataclass(frozen=True)
class Head:
    """A kind of model: transformers' word at the end of its classes, its Auto class, {model_type: class}; what the Hub
    and PEFT call its task."""

    ending: str
    auto: str
    classes: Mapping[str, Any]
    pipeline: str
    task: str

    def class_for(self, model_type: str) -> str | None:
        """Transformers' class of this kind for a family."""
        found = self.classes.get(model_type)
        return found if isinstance(found, str) or found is None else found[0]


HEADS = {
    CAUSAL: Head(
        "ForCausalLM",
        "AutoModelForCausalLM",
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "text-generation",
        "CAUSAL_LM",
    ),
    BODY: Head("Model", "AutoModel", modeling_auto.MODEL_MAPPING_NAMES, "feature-extraction", "FEATURE_EXTRACTION"),
    "ZooForSequenceClassification": Head(
        "ForSequenceClassification",
        "AutoModelForSequenceClassification",
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "text-classification",
        "SEQ_CLS",
    ),
    "ZooForTokenClassification": Head(
        "ForTokenClassification",
        "AutoModelForTokenClassification",
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "token-classification",
        "TOKEN_CLS",
    ),
    "ZooForQuestionAnswering": Head(
        "ForQuestionAnswering",
        "AutoModelForQuestionAnswering",
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "question-answering",
        "QUESTION_ANS",
    ),
}


def head_of(raw: Mapping[str, Any]) -> str:
    """The class of zoo's that corresponds to the one a config.json names; a causal language model where it names none.

    Raises ConversionError for a class of the checkpoint's own whose head nobody here knows.
    """
    name = _named(raw)
    for ours, head in HEADS.items():
        if name == ours or (ours != BODY and name.endswith(head.ending)):
            return ours
    bodies = [(body,) if isinstance(body, str) else body for body in HEADS[BODY].classes.values()]
    if name.endswith(("Model", "Encoder")) and any(name in body for body in bodies):
        return BODY
    auto_map = raw.get("auto_map") if isinstance(raw.get("auto_map"), dict) else {}
    said = {key for key, where in auto_map.items() if str(where).rpartition(".")[2] == name}
    for ours, head in HEADS.items():
        if head.auto in said:
            return ours
    if name.endswith("Model") and not name.endswith(("HeadModel", "HeadsModel")):
        raise ConversionError(
            f"config.json names the class {name} (architectures), whose head is not known: if its tensors are those "
            "of a body, a causal language model or a classifier of transformers, name that class there."
        )
    return CAUSAL


def head_of_own(config) -> str:
    """The same for a ZooConfig."""
    name = _named({"architectures": config.architectures})
    return name if name in HEADS else CAUSAL


def labels_of(config, head: str) -> dict[str, Any]:
    """What a config says about the labels of such a head."""
    if head in (CAUSAL, BODY):
        return {}
    labels = {key: getattr(config, key, None) for key in _LABELS}
    return {key: value for key, value in labels.items() if value is not None}


def _named(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
