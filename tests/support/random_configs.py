"""Random configs, made of what the fields say of themselves and of what the refusals say of the fields.

A draw gives many fields a random value and then listens: one that "only means something with" another is dropped, one
that another "needs" is given, of two that contradict each other one goes. What is left is accepted or it is refused.
"""

import re

from huggingface_hub.errors import StrictDataclassError
from random_fields import KINDS, draw_value

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Items
from configuration_zoo.field_settings import described, settings_of

# How large a model is that runs in no time; everything else is drawn.
SIZES = {
    "vocab_size": (37, 61),
    "hidden_size": (8, 12, 16, 24),
    "num_hidden_layers": (1, 2, 3),
    "num_attention_heads": (1, 2, 3, 4),
    "intermediate_size": (10, 16, 24),
    "max_position_embeddings": (32, 64),
}
DEFAULTS = {name: field.default for name, field in described(ZooConfig).items()}
# What chooses a concept: one of some names for each layer, or a name where a model cannot do without.
SELECTORS = {
    name
    for name, kind in KINDS.items()
    if (isinstance(kind, Items) and kind.per_layer) or (isinstance(kind, Choice) and DEFAULTS[name] is not None)
}
FREE = sorted(set(KINDS) - set(SIZES) - {"source_config", "use_cache", "rope_parameters"})
# The fields that stand together in one file, or keys in one dict.
GROUPS = {
    group.__name__: set(vars(group).get("__annotations__", ())) & set(FREE)
    for group in ZooConfig.__mro__
    if set(vars(group).get("__annotations__", ())) & set(FREE)
} | {group: {f"{group}.{key}" for key in kind.keys} & set(FREE) for group, kind in settings_of(ZooConfig).items()}
# The tables of transformers' rotations, which are one field to zoo.
ROTATIONS = (
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8},
    {"rope_type": "proportional", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
)  # fmt: skip
REPAIRS = 60


def draw_fields(rng):
    """Fields of a config, nothing said about whether they go together: many of two groups, a few of the others."""
    chosen = {name: rng.choice(values) for name, values in SIZES.items()}
    layers = chosen["num_hidden_layers"]
    focus = rng.sample(sorted(GROUPS), 2)
    for name in FREE:
        likely = 0.3 if any(name in GROUPS[group] for group in focus) else 0.15 if name in SELECTORS else 0.02
        if rng.random() < likely:
            chosen[name] = draw_value(KINDS[name], layers, rng)
    if rng.random() < 0.2:
        chosen["rope_parameters"] = dict(rng.choice(ROTATIONS))
    return {name: value for name, value in chosen.items() if value is not None}


def try_config(chosen):
    """(config, None) or (None, the sentence of the refusal); any other error is nobody's intention and goes up."""
    try:
        return ZooConfig(**chosen), None
    except (StrictDataclassError, ValueError) as error:
        return None, str(error)


def named_in(sentence):
    """The fields a sentence names, in its order."""
    return [
        word
        for word in dict.fromkeys(re.findall(r"\w+(?:\.\w+)?", sentence))
        if word in KINDS or word == "per_layer_config"
    ]


def repair(chosen, sentence, rng):
    """The fields without, or with, what the sentence speaks of; None where it names none of them."""
    layers = chosen["num_hidden_layers"]
    named = named_in(sentence)
    assert named, f"a refusal names no field: {sentence}"
    wanted = sentence.partition("only means something with")[2]
    for word in ("needs", ": set "):
        wanted = wanted or sentence.partition(word)[2]
    if wanted and rng.random() < 0.6 and (given := _satisfy(wanted, chosen, rng)):
        return chosen | given
    there = [name for name in named if name in chosen]
    if not there:
        given = _satisfy(sentence, chosen, rng)
        return chosen | given if given else None
    if "only means something" in sentence:
        # What stands beside it in its group is often about the same concept.
        siblings = next(names for names in GROUPS.values() if there[0] in names) if there[0] in FREE else set()
        gone = {there[0]} | {name for name in sorted(siblings - SELECTORS) if rng.random() < 0.3}
        return {name: value for name, value in chosen.items() if name not in gone or name in SIZES}
    name = rng.choice(there)
    if name in SIZES:
        return chosen | {name: rng.choice(SIZES[name])}
    if name in SELECTORS and rng.random() < 0.5:
        return chosen | {name: draw_value(KINDS[name], layers, rng)}
    return _without(chosen, name)


def _satisfy(wanted, chosen, rng):
    """The first field a demand names, with one of the values it quotes."""
    for name in named_in(wanted):
        kind, quoted = KINDS.get(name), re.findall(r"'(\w+)'", wanted)
        entry = kind.entry if isinstance(kind, Items) and kind.per_layer else kind
        if isinstance(entry, Choice) and (names := [word for word in quoted if word in entry.names]):
            if entry is kind:
                return {name: rng.choice(names)}
            layers = chosen["num_hidden_layers"]
            given = chosen.get(name)
            given = list(given) if isinstance(given, list) else [given or DEFAULTS[name] or rng.choice(names)] * layers
            given[rng.randrange(layers)] = rng.choice(names)
            return {name: given}
        if name not in chosen and name in FREE and kind is not None:
            return {name: draw_value(kind, chosen["num_hidden_layers"], rng)}
    return {}


def _without(chosen, name):
    return {key: value for key, value in chosen.items() if key != name}


def differ(chosen, config, rng, per_layer_fields, refusals):
    """The same with some fields of one layer different, among those of which the model has a value at all."""
    layer, own = rng.randrange(config.num_hidden_layers), {}
    known = [name for name in per_layer_fields if getattr(config, name) is not None]
    for name in rng.sample(known, min(len(known), rng.choice((1, 4, 8)))):
        value = draw_value(KINDS[name], config.num_hidden_layers, rng)
        wider = chosen | {"per_layer_config": {layer: own | {name: value}}}
        found, sentence = try_config(wider)
        if found is None:
            refusals.append(sentence)
        elif value is not None:
            chosen, config, own = wider, found, own | {name: value}
    return chosen, config


def tokens_it_reads_and_writes(config):
    """Tokens that every table has and that are not suppressed, hence have a finite loss; training needs one."""
    known = min(config.vocab_size, config.vocab_size_per_layer_input or config.vocab_size)
    return [token for token in range(known) if token not in (config.suppressed_token_ids or ())]


def draw_config(rng, per_layer_fields=()):
    """(fields, config or None, sentences of refusal on the way)."""
    chosen, refusals = draw_fields(rng), []
    for _ in range(REPAIRS):
        config, sentence = try_config(chosen)
        if config is not None and not tokens_it_reads_and_writes(config):
            chosen = _without(chosen, "suppressed_token_ids")
            continue
        if config is not None:
            if rng.random() < 0.4:
                chosen, config = differ(chosen, config, rng, per_layer_fields, refusals)
            return chosen, config, refusals
        refusals.append(sentence)
        mended = repair(chosen, sentence, rng)
        if mended is None:
            break
        chosen = mended
    return chosen, None, refusals


def shrink(chosen, fails):
    """The fewest of the fields with which `fails(fields)` still holds, each left out in turn."""
    for name in sorted(chosen, key=lambda name: name in SIZES):
        fewer = _without(chosen, name)
        if name not in SIZES and try_quietly(fails, fewer):
            return shrink(fewer, fails)
    return chosen


def try_quietly(fails, chosen):
    try:
        return fails(chosen)
    except (StrictDataclassError, ValueError):
        return False
