"""A sigmoid gate on attention's output, born open: W_g = 0 gives sigmoid(0) = ½ everywhere, and W_o doubled undoes it.

Both are exact in any float, and the gate has a gradient from the first step (Qiu et al. 2025, arXiv 2505.06708).
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .operation import BITS, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError, bits_of, has_own

GATE = "attn_output_gate"
WORDS = ("query", "elementwise", "headwise")


class OutputGate(Operation):
    def __init__(self):
        super().__init__("gate on attention's output", (GATE,), parts=("mixer",), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return fields.get(GATE) in WORDS

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        return [index for index, name in enumerate(config.attention_mixers) if name is not None]

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.attn_output_gate is not None or not self.layers(config, {}):
            return []
        asked = [{GATE: word} for word in WORDS]
        return [Example(one, self.exactness(config, Request(one, [])), "a gate that can learn") for one in asked]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where attention has another gate, or one of its own kind, or a norm behind the gate."""
        if config.attn_output_gate is not None:
            raise SurgeryError(f"{GATE}={config.attn_output_gate!r} is there already.")
        if other := {name for name in config.attention_mixers if name not in (None, "grouped_query")}:
            raise SurgeryError(f"{GATE}: layers of {min(other)!r}; only grouped-query attention gets a gate.")
        if has_own(config, "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias"):
            raise SurgeryError(f"{GATE}: layers have heads of their own in per_layer_config.")
        if not request.every:
            raise SurgeryError(f"{GATE} is one word for all layers: leave out --layers.")
        if config.num_kv_shared_layers or {"shared_block", "sub_norm"} & set(config.block_types):
            raise SurgeryError(f"{GATE}: attention is shared, or has a norm in front of its output projection.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        if request.fields[GATE] == "query":  # its rows stand among those of the queries
            return bits_of(config.num_attention_heads * config.head_dim)
        return Exactness(BITS)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        chosen = set(request.layers)
        doubled, projection = Make(lambda ctx, weight: [weight * 2]), f"{ATTENTION}o_proj.weight"
        if new.attn_output_gate == "query":
            wide = Make(lambda ctx, rows: [with_gates(config, rows)])
            names = [
                f"{ATTENTION}q_proj.{kind}" for kind in (("weight", "bias") if config.attention_bias else ("weight",))
            ]
            rules = [Rule(name, name, wide) for name in names] + [Rule(projection, projection, doubled)]
        else:
            after, before = expected_tensors(new).tensors, expected_tensors(config).tensors
            stem = ATTENTION.format(i=request.layers[0])
            added = [name.removeprefix(stem) for name in after if name.startswith(stem) and name not in before]

            def gated(ctx: Context, weight: Tensor) -> list[Tensor]:
                shapes = [after[f"{ATTENTION.format(i=ctx.layer)}{name}"].shape for name in added]
                return [weight * 2, *(weight.new_zeros(shape) for shape in shapes)]

            rules = [Rule(projection, [projection, *(ATTENTION + name for name in added)], Make(gated))]
        for rule in rules:
            rule.where = lambda ctx: ctx.layer in chosen
        return rules


def with_gates(config: ZooConfig, rows: Tensor) -> Tensor:
    """Rows of q_proj, each head's followed by those of its gate, zeros."""
    heads = rows.unflatten(0, (config.num_attention_heads, -1))
    gates = heads.new_zeros(config.num_attention_heads, config.value_width, *heads.shape[2:])
    return torch.cat((heads, gates), 1).flatten(0, 1)
