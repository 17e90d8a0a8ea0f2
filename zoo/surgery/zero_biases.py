"""Biases of zero where there were none."""

from collections.abc import Collection
from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .operation import ARITHMETIC, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError, as_they_are

BIASES = ("attention_bias", "attention_out_bias", "mlp_bias", "lm_head_bias")


class ZeroBiases(Operation):
    def __init__(self):
        super().__init__("biases of zero", BIASES, parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return any(isinstance(fields.get(name), bool) for name in BIASES)

    def examples(self, config: ZooConfig) -> list[Example]:
        fields = {name: True for name in BIASES[:3] if getattr(config, name) is False}
        return [Example(fields, Exactness(ARITHMETIC), "biases that can learn")] if fields else []

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for biases that would be lost."""
        for name in BIASES:
            if request.fields.get(name) is False and getattr(config, name):
                raise SurgeryError(f"{name}=false: the biases that are there would be lost.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        # What follows from attention_bias where it is not said.
        return as_they_are(config, "attention_out_bias") | request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        return zeros_beside(config, new)


def zeros_beside(config: ZooConfig, new: ZooConfig, without: Collection[str] = ()) -> list[Rule]:
    """Zeros for the biases that the new config has and the old one has not, those `without` apart."""
    old = expected_tensors(config)
    names = [name for name in expected_tensors(new).tensors if name not in old.tensors and name.endswith(".bias")]
    made = Make(lambda ctx, weight: [weight, weight.new_zeros(len(weight))])
    return [
        Rule(weight_of(name, old.tied), [weight_of(name, old.tied), name], made)
        for name in names
        if name not in without
    ]


def weight_of(bias: str, tied: dict[str, str]) -> str:
    """The weight beside a bias, or the embedding that stands for it."""
    weight = f"{bias.removesuffix('bias')}weight"
    return tied.get(weight, weight)
