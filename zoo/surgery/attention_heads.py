"""Heads of queries: more by silent ones, fewer by what they give, with the output projection put right.

More: the new heads of each group give nothing, as their columns of the output projection are zero. Fewer: a head is
scored by E‖W_o,h a_h‖²; where num_key_value_heads shrinks alike whole groups go, else the same number of each group.
The heads that stay, S, learn from the second moment of what heads put out: W' = argmin E‖W a - W' a_S‖².
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .mlp_width import least_squares
from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    OF_RECURRENCES,
    Exactness,
    Example,
    Make,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    as_they_are,
    for_layers,
    has_own,
)

READS = "self_attn.o_proj"
HEADS, GROUPS = "num_attention_heads", "num_key_value_heads"
# What ties heads to each other or to their number.
REFUSED = {"attn_output_gate": (None,), "num_kv_shared_layers": (None, 0), "attention_k_eq_v": (False,)}
POSITIONS = ("rope", "none", "learned")


class AttentionHeads(Operation):
    def __init__(self):
        super().__init__("heads of queries", (HEADS,), (GROUPS,), parts=("mixer",), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        """Where groups change in another ratio, they are joined or repeated first."""
        if not isinstance(fields.get(HEADS), int):
            return False
        return GROUPS not in fields or fields[GROUPS] * config.num_attention_heads == (
            fields[HEADS] * config.num_key_value_heads
        )

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        if has_own(config, HEADS, GROUPS, "head_dim"):
            return []
        return [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}):
            return []
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        more = Request({HEADS: heads + groups}, self.layers(config, {}))
        rows = [Example(more.fields, self.exactness(config, more), "further heads, silent until they learn")]
        if heads > groups:
            note = "heads that give least go: calibrate, then heal"
            rows.append(Example({HEADS: heads - groups}, Exactness(APPROXIMATE), note))
        return rows

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where heads do not divide, or depend on each other."""
        heads, groups = request.fields[HEADS], request.get(GROUPS, config.num_key_value_heads)
        for name, free in REFUSED.items():
            if getattr(config, name) not in free:
                raise SurgeryError(f"{name}={getattr(config, name)!r} ties heads to each other: they cannot be chosen.")
        if config.position_embedding_type not in POSITIONS:
            raise SurgeryError(f"position_embedding_type={config.position_embedding_type!r} is one for each head.")
        if config.qk_norm is not None and config.qk_norm_config["scope"] == "full":
            raise SurgeryError("qk_norm_config.scope='full' normalises all heads together: none can be left out.")
        if unknown := other_tensors(config):
            raise SurgeryError(f"{unknown[0]} is one for all heads: none can be left out or added.")
        if heads < 1 or groups < 1 or heads % groups:
            raise SurgeryError(f"{HEADS}={heads} must be a multiple of {GROUPS}={groups}: as many of each group.")
        if not request.every and groups != config.num_key_value_heads:
            raise SurgeryError(f"{GROUPS} changes in all layers or in none: leave out --layers.")

    def fewer(self, config: ZooConfig, request: Request) -> bool:
        return request.fields[HEADS] < config.num_attention_heads

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE if self.fewer(config, request) else ARITHMETIC)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need(READS)] if self.fewer(config, request) else []

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        said = as_they_are(config, "head_dim", "v_head_dim", "attention_multiplier", *OF_RECURRENCES)
        groups = request.get(GROUPS, config.num_key_value_heads)
        return said | {GROUPS: groups} | for_layers(config, request, {HEADS: request.fields[HEADS]})

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        per_head, per_group = tensors_of(config)
        names, chosen = [f"{ATTENTION}o_proj.weight", *per_head, *per_group], set(request.layers)
        heads, groups = request.fields[HEADS], request.get(GROUPS, config.num_key_value_heads)
        expected = expected_tensors(new).tensors

        def shapes(ctx: Context) -> list:
            return [expected[name.format(i=ctx.layer)].shape for name in names]

        def make(ctx: Context, output: Tensor, *rest: Tensor) -> list[Tensor]:
            moment = statistics.get((ctx.layer, READS))
            if moment is None:
                return padded(config, heads, groups, output, rest[: len(per_head)], rest[len(per_head) :])
            chosen_heads, chosen_groups = best_heads(config, heads, groups, output, moment)
            channels = torch.arange(output.shape[1]).view(config.num_attention_heads, -1)[chosen_heads].flatten()
            made = [least_squares(output, moment[:-1, :-1], channels)]
            made += [picked(one, config.num_attention_heads, chosen_heads) for one in rest[: len(per_head)]]
            return made + [picked(one, config.num_key_value_heads, chosen_groups) for one in rest[len(per_head) :]]

        return [Rule(names, names, Make(make, shapes), where=lambda ctx: ctx.layer in chosen)]


def tensors_of(config: ZooConfig) -> tuple[list[str], list[str]]:
    """Names of the tensors with rows for each head of the queries, and for each head of keys and values."""
    kinds = ["weight", "bias"] if config.attention_bias else ["weight"]
    per_head = [f"{ATTENTION}q_proj.{kind}" for kind in kinds]
    per_group = [f"{ATTENTION}{letter}_proj.{kind}" for letter in "kv" for kind in kinds]
    if config.attention_sinks is not None:
        per_head.append(f"{ATTENTION}sinks")
    if config.qk_norm is not None and config.qk_norm_config["weight"] == "per_head":
        kinds = ["weight", "bias"] if config.qk_norm_config["bias"] else ["weight"]
        per_head += [f"{ATTENTION}q_norm.{kind}" for kind in kinds]
        per_group += [f"{ATTENTION}k_norm.{kind}" for kind in kinds]
    return per_head, per_group


def other_tensors(config: ZooConfig) -> list[str]:
    """Tensors of attention that are neither projections nor what `tensors_of` knows."""
    known = {f"{ATTENTION}{name}" for name in ("o_proj.weight", "o_proj.bias", "q_norm.weight", "k_norm.weight")}
    known |= {name for names in tensors_of(config) for name in names}
    layers = [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]
    known = {name.format(i=layer) for name in known for layer in layers}
    ours = tuple(ATTENTION.format(i=layer) for layer in layers)
    return [name for name in expected_tensors(config).tensors if name.startswith(ours) and name not in known]


def picked(rows: Tensor, count: int, chosen: Tensor) -> Tensor:
    """The rows of the chosen of `count` heads."""
    return rows.unflatten(0, (count, -1))[chosen].flatten(0, 1).contiguous()


def padded(
    config: ZooConfig, heads: int, groups: int, output: Tensor, per_head: tuple[Tensor, ...], per_group: tuple
) -> list[Tensor]:
    """The tensors with heads of zeros behind those of each group, and groups of zeros behind the groups."""
    old_groups, more = (
        config.num_key_value_heads,
        heads // groups - config.num_attention_heads // config.num_key_value_heads,
    )

    def filled(rows: Tensor) -> Tensor:
        by_group = rows.unflatten(0, (old_groups, config.num_attention_heads // old_groups, -1))
        by_group = torch.cat((by_group, by_group.new_zeros(old_groups, more, *by_group.shape[2:])), 1)
        return longer(by_group, groups).flatten(0, 2)

    return [filled(output.T).T.contiguous(), *map(filled, per_head)] + [
        longer(one.unflatten(0, (old_groups, -1)), groups).flatten(0, 1) for one in per_group
    ]


def longer(rows: Tensor, count: int) -> Tensor:
    return torch.cat((rows, rows.new_zeros(count - len(rows), *rows.shape[1:])))


def best_heads(config: ZooConfig, heads: int, groups: int, output: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """(the heads, the groups) that give most; `output` is W_o `[D, H · v]`, `moment` E[a aᵀ] of what it reads."""
    blocks = output.double().unflatten(1, (config.num_attention_heads, -1))
    moment = moment[:-1, :-1].unflatten(0, blocks.shape[1:]).unflatten(2, blocks.shape[1:])
    scores = torch.einsum("dhi,hihj,dhj->h", blocks, moment, blocks).view(config.num_key_value_heads, -1)
    by_group = torch.arange(config.num_attention_heads).view_as(scores)
    if groups < config.num_key_value_heads:
        kept = scores.sum(1).topk(groups).indices.sort().values
        return by_group[kept].flatten(), kept
    best = scores.topk(heads // groups, dim=1).indices.sort(1).values
    return by_group.gather(1, best).flatten(), torch.arange(groups)
