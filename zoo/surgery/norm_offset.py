"""Weights of norms stored as they are, or as their offset from one."""

from collections.abc import Collection
from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import empty_model

from .operation import ARITHMETIC, Exactness, Example, Make, Operation, Request, Statistics

FIELD = "norm_unit_offset"


class NormOffset(Operation):
    def __init__(self):
        super().__init__("offset of norms", (FIELD,), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(FIELD), bool)

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.norm_type != "rms_norm" or not config.norm_elementwise_affine:
            return []
        return [Example({FIELD: not config.norm_unit_offset}, Exactness(ARITHMETIC), "as another family stores them")]

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        return shifted(config, new)


def shifted(config: ZooConfig, new: ZooConfig, without: Collection[str] = ()) -> list[Rule]:
    """Weights of norms as the new config stores them, those of the norms `without` apart."""
    before, rules = offsets(config), []
    for name, offset in offsets(new).items():
        if name.removesuffix(".weight") not in without and (change := before[name] - offset):
            rules.append(Rule(name, name, Make(lambda ctx, weight, change=change: [weight + change])))
    return rules


def offsets(config: ZooConfig) -> dict[str, float]:
    """{name of a norm's weight: what is added to it}."""
    modules = empty_model(config).named_modules()
    return {
        f"{name}.weight": module.offset
        for name, module in modules
        if isinstance(getattr(module, "offset", None), float) and getattr(module, "weight", None) is not None
    }
