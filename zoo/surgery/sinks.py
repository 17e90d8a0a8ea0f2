"""A logit per head that takes part in the softmax and has no value (Xiao et al. 2023, arXiv 2309.17453; gpt-oss).

learns   starts at -10: a share of e⁻¹⁰ is little, and its gradient is not zero
silent   starts at -10,000: far below any score, it takes nothing in whatever range they are; and nothing is learnt, as
         a sink's gradient is its own probability
"""

from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from .latent_full import ATTENTION
from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    has_own,
)

SINKS = "attention_sinks"
STARTS = {"learns": -10.0, "silent": -1e4}


class Sinks(Operation):
    def __init__(self):
        super().__init__("attention sinks", (SINKS,), methods=tuple(STARTS), parts=("mixer",), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(SINKS), str) and config.attention_sinks is None

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(SINKS, "all")
        return [
            index
            for index, name in enumerate(config.attention_mixers)
            if name == "grouped_query" and wanted in ("all", config.layer_types[index])
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.attention_sinks is not None or not self.layers(config, {}):
            return []
        fields = {SINKS: "all"}
        return [
            Example(fields, Exactness(APPROXIMATE), "heads can look at nothing; costs the fifth digit"),
            Example(fields, Exactness(ARITHMETIC), "the shape alone", "silent"),
        ]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for attention of another kind, and for some layers alone."""
        if other := {name for name in config.attention_mixers if name not in (None, "grouped_query")}:
            raise SurgeryError(f"{SINKS}: layers of {min(other)!r} have no sinks.")
        if has_own(config, "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias"):
            raise SurgeryError(f"{SINKS}: layers have heads of their own in per_layer_config.")
        if not request.every:
            raise SurgeryError(f"{SINKS} names a type of layer, or all: leave out --layers.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE if request.method == "learns" else ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        chosen, start = set(request.layers), STARTS[request.method]

        def made(ctx: Any, weight: Tensor) -> list[Tensor]:
            return [weight, weight.new_full((config.num_attention_heads,), start)]

        name = f"{ATTENTION}o_proj.weight"
        return [Rule(name, [name, f"{ATTENTION}sinks"], Make(made), where=lambda ctx: ctx.layer in chosen)]
