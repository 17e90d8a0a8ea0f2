"""Checks shared by the field groups: each raises a ValueError that says the field, its value and what is allowed."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from .field_kinds import nearest
from .field_needs import UnreadField


def check_choice(config: PreTrainedConfig, field: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `config.field` (or each entry of a list) is None or one of `allowed`."""
    value = getattr(config, field)
    allowed = sorted(allowed)
    for index, entry in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if entry is not None and entry not in allowed:
            where = field if index is None else f"{field}[{index}]"
            raise ValueError(f"{where}={entry!r} is not one of {allowed}.{nearest(str(entry), allowed)}")


def check_lengths(config: PreTrainedConfig) -> None:
    """Raises StrictDataclassFieldValidationError for a per-layer list whose length is not num_hidden_layers."""
    for field in fields(config):
        if not getattr(field.metadata.get("kind"), "per_layer", False):
            continue
        value = getattr(config, field.name)
        if isinstance(value, list) and len(value) != config.num_hidden_layers:
            error = ValueError(
                f"{field.name} has {len(value)} entries but num_hidden_layers={config.num_hidden_layers}: "
                "a per-layer list needs one entry for each layer."
            )
            raise StrictDataclassFieldValidationError(field=field.name, cause=error) from error


def even_share(width: int, parts: int, says: str, instead: str) -> int:
    """`width / parts`; raises ValueError where that leaves a rest, whose channels would silently be lost.

    `says` names both, `instead` the field that makes the division unnecessary.
    """
    if width % parts:
        raise ValueError(f"{says} leaves a rest: set {instead}, or sizes that divide evenly.")
    return width // parts


def refuse_unless(config: PreTrainedConfig, condition: bool, reason: str, names: Iterable[str]) -> None:
    """Raises UnreadField for any of `names` that is set although its concept is not selected.

    `reason` completes the sentence "field=value only means something with ...".
    """
    if condition:
        return
    for field in names:
        value = getattr(config, field)
        if value is not None and value is not False:
            raise UnreadField(field, value, reason)


def require(config: PreTrainedConfig, reason: str, names: Iterable[str]) -> None:
    """Raises ValueError for any of `names` that a selected concept needs and that is None."""
    for field in names:
        if getattr(config, field) is None:
            raise ValueError(f"{reason} needs {field}, which is not set.")


def for_each_layer(validator: Callable) -> Callable:
    """Runs a validator on every layer's config where `per_layer_config` makes them differ, else on the config; what it
    raises names the layer."""

    @wraps(validator)
    def run(self):
        if not self.is_heterogeneous:
            return validator(self)
        for index, layer in enumerate(self.per_layer_config):
            try:
                validator(layer)
            except ValueError as error:
                raise ValueError(f"Layer {index} of per_layer_config: {error}") from error
        return None

    return run
