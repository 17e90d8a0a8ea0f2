"""Norms put where there were none, each with the weight that comes nearest to what was there without it.

    qk_norm=rms_norm             norms of queries and keys, over each head or all together (`qk_norm_config.scope`)
    block_type=sandwich_norm     norms behind mixer and MLP

With ŷ = y / rms(y) of a token the weight is w_c = E[y_c ŷ_c] / E[ŷ_c²], the least squares of y - w ŷ over the tokens of
a text. A norm takes the length of a vector away: all tokens get the same, which is exact where it did not vary.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .norm_offset import offsets
from .operation import (
    APPROXIMATE,
    Exactness,
    Example,
    Make,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    has_own,
    in_layers,
)

NORM, SCOPE, WEIGHT, EPS = "qk_norm", "qk_norm_config.scope", "qk_norm_config.weight", "qk_norm_config.eps"
BLOCK, LAYER = "block_type", "model.layers.{i}."
RMS = "rms_norm"
# Norm of a branch: what it reads.
BRANCHES = {"attn_output_norm": "mixer", "mlp_output_norm": "mlp"}
PROJECTIONS = {"q_norm": "self_attn.q_proj", "k_norm": "self_attn.k_proj"}


def fitted(sums: Tensor, shape: torch.Size, offset: float) -> Tensor:
    """The weight as it is stored, of sums `[2, n]` of y ŷ and ŷ²; n is a multiple of its size, of heads that share."""
    both = sums.view(2, -1, shape.numel()).sum(1)
    return (both[0] / both[1].clamp(min=1e-30) - offset).view(shape)


def born(beside: str, norm: str, new: ZooConfig, request: Request, statistics: Statistics, module: str) -> Rule:
    """The weight of a norm of each layer of the request, made when the tensor `beside` it is."""
    after, shifts = expected_tensors(new).tensors, offsets(new)

    def make(ctx: Context, tensor: Tensor) -> list[Tensor]:
        name = norm.format(i=ctx.layer)
        made = fitted(statistics[ctx.layer, module], after[name].shape, shifts.get(name, 0.0))
        return [tensor, made.to(tensor.dtype)]

    def shapes(ctx: Context) -> list:
        return [after[name.format(i=ctx.layer)].shape for name in (beside, norm)]

    return Rule(beside, [beside, norm], Make(make, shapes), where=in_layers(request.layers))


class QueryKeyNorm(Operation):
    def __init__(self):
        super().__init__("norms of queries and keys", (NORM,), (SCOPE, WEIGHT, EPS), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return fields.get(NORM) == RMS and config.qk_norm is None

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        return [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.qk_norm is not None or not self.layers(config, {}):
            return []
        note = "queries of one length: calibrate, then heal"
        return [Example({NORM: RMS, SCOPE: "full"}, Exactness(APPROXIMATE), note),
                Example({NORM: RMS, WEIGHT: "per_head"}, Exactness(APPROXIMATE), note)]  # fmt: skip

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for other attention, for some layers alone, and where something stands between."""
        if other := {name for name in config.attention_mixers if name not in (None, "grouped_query")}:
            raise SurgeryError(f"{NORM}: layers of {min(other)!r}; only grouped-query attention gets the norm.")
        if not request.every:
            raise SurgeryError(f"{NORM} is one for all layers here: leave out --layers.")
        if has_own(config, "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias"):
            raise SurgeryError(f"{NORM}: layers have heads of their own in per_layer_config.")
        if request.get(WEIGHT) == "none":
            raise SurgeryError(f"{WEIGHT}='none' has no weight that could be fitted.")
        for name in ("clip_qkv", "num_kv_shared_layers", "attention_k_eq_v"):
            if getattr(config, name):
                raise SurgeryError(f"{NORM}: {name}={getattr(config, name)!r} acts between projection and norm.")
        if config.attn_output_gate == "query":
            raise SurgeryError(f"{NORM}: attn_output_gate='query' makes its gates in the projection of the queries.")
        if any(name is not None for name in config.recurrent_mixers) and "hybrid" in config.layer_types:
            raise SurgeryError(f"{NORM}: layers have a recurrence beside attention, which the norm would not reach.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        heads = request.get(SCOPE, "head") == "head"
        kind = f"normed {config.head_dim}" if heads else "normed"
        return [Need(module, kind) for module in PROJECTIONS.values()]

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return dict(request.fields)

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        return [
            born(f"{LAYER}{module}.weight", f"{ATTENTION}{norm}.weight", new, request, statistics, module)
            for norm, module in PROJECTIONS.items()
        ]


class SandwichNorm(Operation):
    def __init__(self):
        super().__init__("norms behind the branches", (BLOCK,), parts=(), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get(BLOCK)
        if isinstance(wanted, list) and len(wanted) == config.num_hidden_layers:
            return {new for new, old in zip(wanted, config.block_types, strict=True) if new != old} == {"sandwich_norm"}
        return wanted == "sandwich_norm"

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(BLOCK)
        return [
            index
            for index, kind in enumerate(config.block_types)
            if kind == "pre_norm" and (not isinstance(wanted, list) or wanted[index] == "sandwich_norm")
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}):
            return []
        note = "branches of one length: calibrate, then heal"
        return [Example({BLOCK: "sandwich_norm"}, Exactness(APPROXIMATE), note)]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for norms that take off means or have no weight, and for layers with two mixers."""
        if config.norm_type != RMS or not config.norm_elementwise_affine:
            raise SurgeryError(
                f"{BLOCK}=sandwich_norm: norms are not RMS norms with weights, which are what is fitted."
            )
        if any(config.layer_types[layer].startswith("hybrid") for layer in request.layers):
            raise SurgeryError(f"{BLOCK}=sandwich_norm: layers have a recurrence beside attention.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need(module, "normed") for module in BRANCHES.values()]

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        types = list(config.block_types)
        for layer in request.layers:
            types[layer] = "sandwich_norm"
        return {BLOCK: "sandwich_norm" if set(types) == {"sandwich_norm"} else types}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        beside = {"mixer": f"{LAYER}attn_norm.weight", "mlp": f"{LAYER}mlp_norm.weight"}
        return [
            born(beside[module], f"{LAYER}{norm}.weight", new, request, statistics, module)
            for norm, module in BRANCHES.items()
        ]
