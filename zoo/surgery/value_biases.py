"""Biases of values moved behind attention: weights of a softmax sum to one, so that a constant in every value is that
constant in every output, b_o + W_o repeat(b_v)."""

from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .operation import (
    ARITHMETIC,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    has_own,
    in_layers,
)

NAME = "value_biases"
# What stands between the sum and the projection, or leaves a part of the sum out.
REFUSED = {
    "attn_output_gate": (None,),
    "attention_value_scale": (None, 1.0),
    "attention_sinks": (None,),
    "value_norm": (False,),
    "clip_qkv": (None,),
}
SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias", "attention_out_bias")


class ValueBiases(Operation):
    def __init__(self):
        super().__init__("biases of values", applied=NAME, parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return False

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        if has_own(config, *SIZES):
            return []
        return [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        there = config.attention_bias and config.attention_out_bias and self.layers(config, {})
        return [Example({}, Exactness(ARITHMETIC), "one form of what two biases say")] if there else []

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where a bias of values is not the same in every output."""
        for name, allowed in REFUSED.items():
            if getattr(config, name) not in allowed:
                raise SurgeryError(f"{NAME}: {name}={getattr(config, name)!r} weighs what values give.")
        if not config.attention_bias or not config.attention_out_bias:
            raise SurgeryError(f"{NAME}: attention_bias and attention_out_bias must both be true.")
        if config.num_kv_shared_layers or config.attention_k_eq_v or "sub_norm" in config.block_types:
            raise SurgeryError(f"{NAME}: values are shared, or normed behind attention.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return {}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        names = [f"{ATTENTION}{name}" for name in ("v_proj.bias", "o_proj.weight", "o_proj.bias")]
        there = expected_tensors(config).tensors
        layers = [layer for layer in request.layers if all(name.format(i=layer) in there for name in names)]

        def make(ctx: Any, values: Tensor, projection: Tensor, outputs: Tensor) -> list[Tensor]:
            groups = values.double().unflatten(0, (config.num_key_value_heads, -1))
            constant = groups.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0).flatten()
            moved = outputs.double() + projection.double() @ constant
            return [values.new_zeros(len(values)), projection, moved.to(outputs.dtype)]

        return [Rule(names, names, Make(make), where=in_layers(layers))]
