"""Config classes of families that live as published code alone: transformers has no class for their model_type."""

from typing import Any

from transformers import PreTrainedConfig

from .family import Keys, Ours, Theirs


def published_config(model_type: str, aliases: Keys | None = None, **defaults: Any) -> type[PreTrainedConfig]:
    """A class with the keys of a published configuration class and its `defaults`; None is no value, whatever the kind.

    `aliases` are transformers' names of keys that are called otherwise there: `{"num_hidden_layers": "num_layers"}`.
    """
    kinds = {name: Any if value is None else type(value) | None for name, value in defaults.items()}
    body = {"__annotations__": kinds, "model_type": model_type, "attribute_map": aliases or {}}
    return type(f"{model_type.title().replace('-', '')}Config", (PreTrainedConfig,), body | defaults)


def old_rope(theirs: Theirs) -> Keys:
    """`rope_parameters` from the `rope_theta` and `rope_scaling` that code of transformers 4 reads."""
    scaling = dict(theirs.rope_scaling or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theirs.rope_theta} | scaling}


def restore_old_rope(ours: Ours) -> Keys:
    """The inverse of `old_rope`."""
    table = dict(ours.rope_parameters)
    theta, kind = table.pop("rope_theta"), table.pop("rope_type", "default")
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind} | table}
