"""Grouped-query → latent attention as DeepSeek-V3's published classes have it, which always normalise the latent and
rotate the rope key as one head.

    the norm      a further channel of the latent is the constant C = 2²⁰, by a bias. Then mean(x²) is C² / c to
                  the last bit, and with the weight C / √c the norm is the identity; c is a power of four, and √c exact.
    the rotation  rope_type "longrope" divides every frequency by a factor of its own, so any table can be written: with
                  rope_theta = 1 the factors are θ^(2j / d), and the division is the one of the plain table.
    the scale     a query is 4ᵐ times as wide, and multiplied by 2ᵐ.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from .latent_full import ATTENTION, projection_names
from .operation import Make, Request, SurgeryError, in_layers

CONSTANT = 2.0**20


def check(config: ZooConfig, request: Request) -> None:
    """Raises SurgeryError for what the published classes cannot say."""
    if request.fields.keys() & {"kv_lora_rank", "qk_rope_head_dim"}:
        raise SurgeryError("method 'stock' is the full rank: leave kv_lora_rank and qk_rope_head_dim out.")
    if not request.every:
        raise SurgeryError("method 'stock' changes all layers: leave out --layers.")
    tables = config.rope_tables
    if set(tables) != {"default"} or tables["default"].get("partial_rotary_factor", 1.0) != 1.0:
        raise SurgeryError("method 'stock' needs one rotation of whole heads, for all layers.")
    if tables["default"].get("rope_type", "default") in ("dynamic", "longrope", "yarn"):
        raise SurgeryError(f"method 'stock' has no place for rope_type={tables['default']['rope_type']!r}.")
    if config.qk_norm is not None or config.attn_output_gate == "query":
        raise SurgeryError("method 'stock' has no place for qk_norm or attn_output_gate='query'.")
    if config.dtype == torch.float16:
        raise SurgeryError("method 'stock' holds numbers of 2^20, above float16's range: choose --dtype bfloat16.")
    if config.attention_bias:
        raise SurgeryError("method 'stock' has no place for a bias on queries (attention_bias=True).")


def query_width(config: ZooConfig) -> int:
    """Channels of a query: 4ᵐ · d, so that the scale of the scores changes by a power of two."""
    width = config.head_dim
    while width < config.num_key_value_heads * config.head_dim:
        width *= 4
    return width


def config(config: ZooConfig) -> dict[str, Any]:
    """Fields of the new config."""
    rope, width = config.num_key_value_heads * config.head_dim, query_width(config)
    rank = 1
    while rank < config.num_key_value_heads * config.value_width + 1:
        rank *= 4
    return {
        "num_key_value_heads": config.num_attention_heads,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": width - rope,
        "head_dim": rope,
        "attention_multiplier": None,
        "attention_bias": True,
        "attention_out_bias": True,
        "rope_parameters": table(config),
    }


def table(config: ZooConfig) -> dict[str, Any]:
    """The rotation of all heads side by side, as one head."""
    from modeling_zoo.position_rotary import Rotations

    old = config.rope_tables["default"]
    if old.get("rope_type", "default") == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        factors, factor = old["rope_theta"] ** exponents, 1.0
    else:
        rotation = Rotations(config).tables["default"]
        factors, factor = 1 / rotation.inv_freq, rotation.attention_scaling
    factors = factors.repeat(config.num_key_value_heads).tolist()
    # Beyond any length, so that no text changes the factors.
    return {
        "rope_type": "longrope",
        "rope_theta": 1.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": max(10**6, config.max_position_embeddings),
        "attention_factor": factor,
    }


def rules(config: ZooConfig, new: ZooConfig, request: Request) -> list[Rule]:
    """q, k, v, o → q, kv_a with a bias, its norm, kv_b with rows for every head, o with a bias."""
    where = in_layers(request.layers)
    targets = ["q_proj.weight", "kv_a_proj_with_mqa.weight", "kv_a_proj_with_mqa.bias", "kv_a_layernorm.weight"]
    targets = [ATTENTION + name for name in (*targets, "kv_b_proj.weight")]
    made = [
        Rule(projection_names(config), targets, Make(lambda ctx, *parts: attention(config, new, *parts)), where=where)
    ]
    if not config.attention_out_bias:
        output, bias = ATTENTION + "o_proj.weight", ATTENTION + "o_proj.bias"
        made.append(Rule(output, [output, bias], Make(lambda ctx, o: [o, o.new_zeros(o.shape[0])]), where=where))
    return made


def attention(config: ZooConfig, new: ZooConfig, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    heads, rank, hidden = new.num_attention_heads, new.kv_lora_rank, query.shape[1]
    groups, width = config.num_key_value_heads, config.head_dim
    head = torch.arange(heads)
    group = head // (heads // groups)
    wide = query.new_zeros(heads, groups, width, hidden)
    wide[head, group] = query.view(heads, width, hidden) * (scale(config, new))
    nope = query.new_zeros(heads, new.qk_nope_head_dim, hidden)
    query = torch.cat((nope, pair_layout(wide, new.rope_interleave)), 1).flatten(0, 1)
    rope_key = pair_layout(key.view(1, groups, width, hidden), new.rope_interleave)[0]
    padding = value.new_zeros(rank - value.shape[0], hidden)
    bias = value.new_zeros(rank + rope_key.shape[0])
    bias[value.shape[0]] = CONSTANT
    norm = value.new_full((rank,), CONSTANT / rank**0.5)
    size = config.value_width
    maps = torch.eye(groups * size, rank, dtype=value.dtype, device=value.device).view(groups, size, rank)[group]
    maps = torch.cat((maps.new_zeros(heads, new.qk_nope_head_dim, rank), maps), 1).flatten(0, 1)
    return [query, torch.cat((value, padding, rope_key)), bias, norm, maps]


def scale(config: ZooConfig, new: ZooConfig) -> float:
    """What queries are multiplied by: the published classes divide scores by the root of the whole width."""
    width = new.qk_nope_head_dim + new.qk_rope_head_dim
    if config.attention_multiplier is None:
        return (width // config.head_dim) ** 0.5
    return config.attention_multiplier * width**0.5


def pair_layout(rows: Tensor, interleave: bool) -> Tensor:
    """`[n, K, d, D]` → `[n, K · d, D]` with the pairs of each head where those of one wide head are."""
    if interleave:
        return rows.flatten(1, 2)
    return rows.unflatten(2, (2, -1)).transpose(1, 2).flatten(1, 3)
