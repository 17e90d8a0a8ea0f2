"""Which class of zoo's corresponds to the one that a config.json names, and what it says of labels."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from description_zoo.heads import BODY, CAUSAL, HEADS, named_class

from ..errors import ConversionError

_LABELS = ("id2label", "label2id", "problem_type")


def head_of(raw: Mapping[str, Any], architecture: str | None = None) -> str:
    """The class of zoo's that corresponds to the one a config.json names; a causal language model where it names none,
    or the family's own `architecture`.

    Raises ConversionError for a class of the checkpoint's own whose head is unknown.
    """
    name = named_class(raw)
    if name and name == architecture:
        return CAUSAL
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


def labels_of(config: PreTrainedConfig, head: str) -> dict[str, Any]:
    """What a config says about the labels of such a head."""
    if head in (CAUSAL, BODY):
        return {}
    labels = {key: getattr(config, key, None) for key in _LABELS}
    return {key: value for key, value in labels.items() if value is not None}
