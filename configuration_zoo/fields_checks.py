"""Checks shared by the field groups: each raises a ValueError that says the field, its value and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import wraps


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    matches = get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def check_choice(config, field: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `config.field` (or each entry of a list) is None or one of `allowed`."""
    value = getattr(config, field)
    allowed = sorted(allowed)
    for index, entry in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if entry is not None and entry not in allowed:
            where = field if index is None else f"{field}[{index}]"
            raise ValueError(f"{where}={entry!r} is not one of {allowed}.{nearest(str(entry), allowed)}")


def check_positive(config, *fields: str) -> None:
    """Raises ValueError for a field that is set but not above zero."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value <= 0:
            raise ValueError(f"{field}={value} must be greater than 0.")


def check_probability(config, *fields: str) -> None:
    """Raises ValueError for a dropout rate outside [0, 1)."""
    for field in fields:
        value = getattr(config, field)
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{field}={value} must be at least 0 and below 1.")


def check_per_layer(config, *fields: str) -> None:
    """Raises ValueError for a per-layer list whose length is not num_hidden_layers."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, list) and len(value) != config.num_hidden_layers:
            raise ValueError(
                f"{field} has {len(value)} entries but num_hidden_layers={config.num_hidden_layers}: "
                "a per-layer list needs one entry for each layer."
            )


def refuse_unless(config, condition: bool, reason: str, fields: Iterable[str]) -> None:
    """Raises ValueError for any of `fields` that is set although its concept is not selected.

    `reason` completes the sentence "field=value only means something with ...".
    """
    if condition:
        return
    for field in fields:
        value = getattr(config, field)
        if value is not None and value is not False:
            raise ValueError(f"{field}={value!r} only means something with {reason}: leave it out or change that.")


def require(config, reason: str, fields: Iterable[str]) -> None:
    """Raises ValueError for any of `fields` that a selected concept needs and that is None."""
    for field in fields:
        if getattr(config, field) is None:
            raise ValueError(f"{reason} needs {field}, which is not set.")


def for_each_layer(validator):
    """Runs a validator on every layer's config where `per_layer_config` makes them differ, else on the config."""

    @wraps(validator)
    def run(self):
        for config in self.per_layer_config if self.is_heterogeneous else [self]:
            validator(config)

    return run
