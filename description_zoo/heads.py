"""What stands on a model's body (a head over the vocabulary, over labels, none), and what the Hub and PEFT call it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto import modeling_auto

import modeling_zoo
from configuration_zoo import ZooConfig

CAUSAL, BODY = "ZooForCausalLM", "ZooModel"


@dataclass(frozen=True)
class Head:
    """A kind of model: the ending of transformers' class names, its Auto class, {model_type: class}; what the Hub
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


def head_of_own(config: ZooConfig) -> str:
    """The class of zoo's that a config names in `architectures`; a causal language model where it names none."""
    name = named_class({"architectures": config.architectures})
    return name if name in HEADS else CAUSAL


def named_class(raw: Mapping[str, Any]) -> str:
    """The first class that `architectures` names, "" for none."""
    names = raw.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def model_class(config: ZooConfig) -> type:
    """The class of zoo's that a config is built as."""
    return getattr(modeling_zoo, head_of_own(config))
