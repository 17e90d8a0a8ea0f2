"""Values of ZooConfig's fields, drawn from what each field says of itself: nothing here knows a field by its name."""

from dataclasses import fields

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Flag, Items, Number
from configuration_zoo.field_settings import described

THEIRS = {field.name for field in fields(PreTrainedConfig)}
# Keys of a dict of settings are fields of their own.
KINDS = {name: field.metadata["kind"] for name, field in described(ZooConfig).items() if name not in THEIRS}
WHOLE = (1, 2, 3, 4, 6, 8, 0)
REAL = (0.3, 0.5, 0.05, 1.7, 4, -0.7)


def fits(kind, value):
    try:
        kind.check("field", value)
    except ValueError:
        return False
    return True


def candidates(kind):
    """Values one entry of this kind may have, small ones of a number."""
    if isinstance(kind, Number):
        return [value for value in (WHOLE if kind.whole else REAL) if fits(kind, value)]
    return list(kind.names) if isinstance(kind, Choice) else [True, False] if isinstance(kind, Flag) else []


def draw_value(kind, layers, rng):
    """A value of a field of this kind, for a model of so many layers; None where the kind is no computation's."""
    if isinstance(kind, Items):
        entries = candidates(kind.entry)
        if kind.per_layer and isinstance(kind.entry, Choice) and rng.random() < 0.3:
            entries = rng.sample(entries, 1)
        return [rng.choice(entries) for _ in range(kind.count or layers)]
    entries = candidates(kind)
    return rng.choice(entries) if entries else None
