"""What the code in a model's folder leaves out: it has its own model's concepts, and refuses the words of others."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from configuration_zoo import ZooConfig

# Words of the config whose concepts are not in this file: `zoo export` fills this in, the package has them all.
LEFT_OUT: frozenset[str] = frozenset()
# Fields of which this file has one value's code: as above.
DECIDED: dict[str, Any] = {}
# Words that follow from several fields, by the properties of the config that say them.
DERIVED = ("mixer_types", "attention_mixers", "recurrent_mixers", "attention_types", "block_types")
# Fields whose words choose no concept.
_FOREIGN = ("source_config", "source_extras", "surgery", "architectures", "auto_map", "id2label", "label2id")


def words_of(config: ZooConfig) -> Iterator[tuple[str, str]]:
    """(field, word) of every word that a config or one of its layers has; a field that is set is a word, too."""
    parts = [*config.per_layer_config, config.outside_layers()] if config.is_heterogeneous else [config]
    named = [field.name for field in fields(config)]
    for part, names in [*((part, named) for part in parts), (config, DERIVED)]:
        for name in names:
            value = getattr(part, name, None)
            if value:
                yield name, name
            for word in words_in(value) if name not in _FOREIGN else ():
                yield name, word


def words_in(value: Any) -> Iterator[str]:
    """The words of a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from words_in(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from words_in(entry)


def refuse_left_out(config: ZooConfig) -> None:
    """Raises ValueError for a word of the config, or a value of a field, whose code this file leaves out."""
    refused = [(name, word) for name, word in words_of(config) if word in LEFT_OUT] if LEFT_OUT else []
    fixed = DECIDED if not refused else {}
    refused += [(name, getattr(config, name)) for name in fixed if getattr(config, name, fixed[name]) != fixed[name]]
    for name, value in refused:
        raise ValueError(
            f"{name}: {value!r} is of a concept whose code is not in this folder: `zoo export FOLDER --all` writes "
            "the code of every concept, and the installed package (modeling-zoo) has it."
        )
