"""Heads of attention in the order of another model's. Their order says nothing about a model, but means of weights
hang on it: another training run, or a tool that sorts heads, may have another one (Ainsworth et al. 2023, Git Re-Basin,
arXiv 2209.04836, for attention).

    key-value groups   paired by ⟨k, k'⟩ + ⟨v, v'⟩ + what their queries are worth, the best pairing of all
    heads of a group   paired by ⟨q, q'⟩ + ⟨o, o'⟩

Models of one ancestor are paired as they are.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .assignment import best_assignment
from .latent_full import ATTENTION
from .operation import Make, has_own
from .tensors import Tensors, operated

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
# What a layer's attention may hold for its heads to have no order: these, and norms that all heads share.
PLAIN = {f"{name}.{kind}" for name in PROJECTIONS for kind in ("weight", "bias")}
SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
POSITIONS = ("rope", "none", "learned", "sinusoidal")


def layers_without_order(config: ZooConfig) -> list[int]:
    """The layers whose heads could stand in any order: nothing but projections tells one from another."""
    if has_own(config, *SIZES) or config.position_embedding_type not in POSITIONS or config.num_kv_shared_layers:
        return []
    if config.attn_output_gate is not None or "shared_block" in config.block_types or config.attention_k_eq_v:
        return []
    tensors, found = expected_tensors(config).tensors, []
    for layer, mixer in enumerate(config.attention_mixers):
        stem = ATTENTION.format(i=layer)
        own = {name.removeprefix(stem): tensor for name, tensor in tensors.items() if name.startswith(stem)}
        others = [tensor for name, tensor in own.items() if name not in PLAIN]
        if mixer == "grouped_query" and all(tuple(tensor.shape) == (config.head_dim,) for tensor in others):
            found.append(layer)
    return found


def match_heads(tensors: Tensors, like: Tensors, config: ZooConfig) -> tuple[Tensors, list[int]]:
    """(`tensors` of a model of this config with heads in the order of `like`, the layers where that is another one).
    One layer's attention of both is read at a time."""
    orders = {}
    for layer in layers_without_order(config):
        ours, theirs = (attention_of(one, layer, config) for one in (tensors, like))
        order = head_order(ours, theirs)
        if order != list(range(config.num_attention_heads)):
            orders[layer] = order
    if not orders:
        return tensors, []
    return operated(tensors, config, config, reordering(config, orders)), list(orders)


def attention_of(tensors: Tensors, layer: int, config: ZooConfig) -> dict[str, Tensor]:
    """q `[K, H / K, ...]`, k and v `[K, ...]`, o `[K, H / K, ...]` of a layer, flat behind that, in float64."""
    groups, stem = config.num_key_value_heads, ATTENTION.format(i=layer)
    read = {name: tensors.read(f"{stem}{name}.weight").double() for name in PROJECTIONS}
    per_group = config.num_attention_heads // groups
    return {
        "q": read["q_proj"].reshape(groups, per_group, -1),
        "k": read["k_proj"].reshape(groups, -1),
        "v": read["v_proj"].reshape(groups, -1),
        "o": read["o_proj"].T.reshape(groups, per_group, -1),
    }


def head_order(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[int]:
    """For each head there the one here that takes its place."""
    groups, per_group = ours["q"].shape[:2]
    alike = theirs["k"] @ ours["k"].T + theirs["v"] @ ours["v"].T
    within: dict[tuple[int, int], list[int]] = {}
    for there in range(groups):
        for here in range(groups):
            scores = theirs["q"][there] @ ours["q"][here].T + theirs["o"][there] @ ours["o"][here].T
            found = best_assignment(scores)
            within[there, here] = found
            alike[there, here] += scores[range(per_group), found].sum()
    pairs = best_assignment(alike)
    return [here * per_group + head for there, here in enumerate(pairs) for head in within[there, here]]


def reordering(config: ZooConfig, orders: dict[int, list[int]]) -> list[Rule]:
    """Rows of queries, keys and values, and columns of outputs, in another order."""
    per_group = config.num_attention_heads // config.num_key_value_heads
    rules = []
    for name in expected_tensors(config).tensors:
        for layer, order in orders.items():
            part = name.removeprefix(ATTENTION.format(i=layer))
            projection = part.partition(".")[0]
            if part == name or part not in PLAIN or part == "o_proj.bias":
                continue
            is_grouped = projection in ("k_proj", "v_proj")
            places = [head // per_group for head in order[::per_group]] if is_grouped else order
            rules.append(Rule(name, name, reordered(places, dim=-1 if projection == "o_proj" else 0)))
    return rules


def reordered(places: list[int], dim: int) -> Make:
    """Blocks of a dimension in the order of `places`."""

    def make(ctx: Any, tensor: Tensor) -> list[Tensor]:
        blocks = tensor.movedim(dim, 0).unflatten(0, (len(places), -1))
        return [blocks[torch.tensor(places)].flatten(0, 1).movedim(0, dim).contiguous()]

    return Make(make)
