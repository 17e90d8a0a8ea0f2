"""What published models agree on, held beside a config: notes, never errors.

Nothing here is quoted from a table of models: where a published model stands is computed from its preset.
"""

import logging
from functools import cache
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.presets import presets

from .advice_rules import RULES, Rule, Value

# How many published models a note names on either side of its range, the nearest first.
NAMED = 4


def advice(config: ZooConfig) -> list[dict[str, Any]]:
    """A note for every rule that applies to a config, in the order of RULES: `topic`; `value` here; the `range` in
    words; whether it is `inside`; the published `models`, {"inside": {name: value}, "outside": {name: value}}; why, in
    `says`; the `source`; and what to `set` where it is outside."""
    # Where layers differ in numbers: those that stand for the whole model.
    config, found = config.outside_layers(), []
    for rule in RULES:
        value = rule.value(config)
        if value is not None:
            inside = rule.is_inside(value)
            found.append(
                {
                    "topic": rule.topic,
                    "value": value,
                    "range": rule.range,
                    "inside": inside,
                    "models": {side: dict(models) for side, models in published(rule).items()},
                    "says": rule.says,
                    "source": rule.source,
                    "set": "" if inside else rule.remedy(config),
                }
            )
    return found


@cache
def published(rule: Rule) -> dict[str, dict[str, Value]]:
    """Where the presets stand; those whose publishers do not say it are left out."""
    sides = {"inside": {}, "outside": {}}
    for name, config in published_configs().items():
        value = rule.value(config)
        if value is not None and (rule.is_published is None or rule.is_published(value)):
            sides["inside" if rule.is_inside(value) else "outside"][name] = value
    return sides


@cache
def published_configs() -> dict[str, ZooConfig]:
    """Every preset as a config. What they warn of is not the caller's concern."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return {name: ZooConfig.preset(name, source_config={}).outside_layers() for name in presets()}
    finally:
        logging.disable(before)


def in_words(value: Value) -> str:
    """2.6875 -> "2.69", 32000 -> "32,000"; words as they are."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def nearest_models(note: dict[str, Any], side: str) -> list[str]:
    """`llama-65b 2.69` of the published models on one side that are most like this one; the latest where the value is a
    word."""
    models, value = note["models"][side], note["value"]
    names = list(models)[::-1]
    if not isinstance(value, str):
        names.sort(key=lambda name: abs(models[name] - value))
    return [f"{name} {in_words(models[name])}" for name in names[:NAMED]]
