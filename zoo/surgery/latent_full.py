"""Grouped-query → latent attention at full rank: the same numbers in other places, to the bit."""

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule

from .operation import Make, Request, in_layers

ATTENTION = "model.layers.{i}.self_attn."


def projection_names(config: ZooConfig) -> list[str]:
    """Of queries, keys and values: weights, and biases where there are any."""
    kinds = ["weight", "bias"] if config.attention_bias else ["weight"]
    return [f"{ATTENTION}{name}_proj.{kind}" for kind in kinds for name in "qkv"]


def rules(config: ZooConfig, new: ZooConfig, request: Request) -> list[Rule]:
    """q, k, v → q, kv_a, kv_b; norms of queries and keys with a weight for each head of theirs."""
    where = in_layers(request.layers)
    kinds = ["weight", "bias"] if config.attention_bias else ["weight"]
    targets = [f"{ATTENTION}q_proj.{kind}" for kind in kinds]
    targets += [f"{ATTENTION}kv_a_proj_with_mqa.{kind}" for kind in kinds] + [f"{ATTENTION}kv_b_proj.weight"]
    made = [Rule(projection_names(config), targets, Make(lambda ctx, *parts: attention(new, parts)), where=where)]
    if config.qk_norm is not None and config.qk_norm_config["weight"] == "per_head":
        # A query has a head for every head of the key, with zeros in all but one: what weighs those is of no account.
        repeat = Make(lambda ctx, weight: [weight.repeat_interleave(config.num_key_value_heads, 0)])
        names = [f"{ATTENTION}q_norm.{kind}" for kind in ("weight", "bias")]
        made += [Rule(name, name, repeat, where=where) for name in names]
    return made


def attention(new: ZooConfig, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """[q, k, v] and their biases → [q (and bias), kv_a (and bias), kv_b]."""
    columns = [parts[index : index + 3] for index in range(0, len(parts), 3)]
    queries = [wide_queries(new, query) for query, _, _ in columns]
    keys_and_values = [torch.cat((value, key)) for _, key, value in columns]
    return [*queries, *keys_and_values, identity_blocks(new, columns[0][2])]


def wide_queries(new: ZooConfig, query: Tensor) -> Tensor:
    """Rows of `[H, d + gate]` → `[H, K · d + gate]`: each head's query in the block of the key head that it reads."""
    heads, groups, width = new.num_attention_heads, new.num_key_value_heads, new.rope_head_width
    rows = query.unflatten(0, (heads, -1))
    wide = rows.new_zeros(heads, groups, width, *rows.shape[2:])
    head = torch.arange(heads)
    wide[head, head // (heads // groups)] = rows[:, :width]
    return torch.cat((wide.flatten(1, 2), rows[:, width:]), 1).flatten(0, 1)


def identity_blocks(new: ZooConfig, like: Tensor) -> Tensor:
    """kv_b: head g takes its own v channels of the latent, `[K · v, K · v]`."""
    rows = new.num_key_value_heads * new.v_head_dim
    return torch.eye(rows, new.kv_lora_rank, dtype=like.dtype, device=like.device)


def layer_of(ctx: Context) -> int:
    """The layer a rule is at; raises ValueError outside the layers."""
    if ctx.layer is None:
        raise ValueError("a rule for layers met a tensor outside them")
    return ctx.layer
