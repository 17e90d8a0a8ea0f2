"""Grouped-query → latent attention of a smaller cache: fewer rotated components, and a latent cut to its rank.

With M_j per frequency (`rotations.py`), k' = M_j k: of each frequency the first components stay rotated and are the
rope key; the others lose their rotation and are stacked with the values, y = [s · k'_rest; v], where s makes both as
large (TransMLA's balance of keys and values). The latent is l = Eᵀ y with the principal components E of y, and

    a head's key without rotation    T_gᵀ k'_rest = T_gᵀ B_k l      T_g: its query's channels → q'_rest, the group's own
    a head's value                   B_v l                           so the query itself stays as it is

where B = E with its key rows divided by s. Folding T_g into kv_b keeps q_proj narrow.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION, projection_names
from .operation import Make, Request, Statistics, SurgeryError, in_layers
from .rotations import as_real_map, mixing, to_complex, to_rows


def check(config: ZooConfig, request: Request, sizes: Any) -> None:
    """Raises SurgeryError for ranks that do not fit, and for keys that cannot be mixed."""
    width = config.head_dim
    if sizes.rope_width % width or not 0 < sizes.rope_width <= sizes.kv_heads * width:
        raise SurgeryError(
            f"qk_rope_head_dim={sizes.rope_width} must be a multiple of head_dim={width} up to "
            f"{sizes.kv_heads * width}: as many pairs of every frequency stay rotated."
        )
    if sizes.rank > sizes.full_rank:
        raise SurgeryError(f"kv_lora_rank={sizes.rank} is above the full rank of {sizes.full_rank}.")
    if config.qk_norm is not None and sizes.rope_heads < sizes.kv_heads:
        raise SurgeryError(
            f"qk_norm={config.qk_norm!r} acts on each key head, so their rotations cannot be mixed: leave "
            "qk_rope_head_dim out and reduce kv_lora_rank alone."
        )
    partial = any(table.get("partial_rotary_factor", 1.0) != 1.0 for table in config.rope_tables.values())
    if partial and sizes.rope_heads < sizes.kv_heads:
        raise SurgeryError("partial_rotary_factor leaves channels without rotation: only kv_lora_rank can be reduced.")


def rules(config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
    """q, k, v → q, kv_a, kv_b by the calibration's second moments of what each layer reads."""
    kinds = ["weight", "bias"] if config.attention_bias else ["weight"]
    targets = [f"{ATTENTION}{name}.{kind}" for name in ("q_proj", "kv_a_proj_with_mqa") for kind in kinds]
    targets.append(f"{ATTENTION}kv_b_proj.weight")
    expected = expected_tensors(new).tensors

    def shapes(ctx: Context) -> list:
        return [expected[name.format(i=ctx.layer)].shape for name in targets]

    def make(ctx: Context, *parts: Tensor) -> list[Tensor]:
        moment = statistics[ctx.layer, "self_attn"]
        return attention(config, new, parts, moment, request.method or "rotated")

    return [Rule(projection_names(config), targets, Make(make, shapes), where=in_layers(request.layers))]


def with_bias(parts: tuple[Tensor, ...]) -> list[Tensor]:
    """[q, k, v] as maps of [x; 1], `[rows, D + 1]` in float64."""
    biases = parts[3:] or [part.new_zeros(part.shape[0]) for part in parts[:3]]
    return [torch.cat((part.double(), bias.double()[:, None]), 1) for part, bias in zip(parts[:3], biases, strict=True)]


def attention(
    config: ZooConfig, new: ZooConfig, parts: tuple[Tensor, ...], moment: Tensor, method: str
) -> list[Tensor]:
    """[q, k, v] and their biases → [q (and bias), kv_a (and bias), kv_b]."""
    query, key, value = with_bias(parts)
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    kept, interleave = new.mla_config["rope_heads"], config.rope_interleave or False
    moment, rows = moment.double(), query.unflatten(0, (heads, -1))
    gate, rows = rows[:, width:], rows[:, :width]
    keys = key.view(groups, width, -1)
    if kept == groups:
        rope_queries = wide(rows, groups)
        rope_key, rest, maps = keys.flatten(0, 1), keys[:0].flatten(0, 1), None
    else:
        complex_keys = to_complex(keys, interleave)
        mixed, inverse = mixing(complex_keys, to_complex(rows, interleave), moment, method)
        new_keys = to_rows(torch.einsum("jmk,kjd->mjd", mixed, complex_keys), interleave)
        rope_key, rest = new_keys[:kept].flatten(0, 1), new_keys[kept:].flatten(0, 1)
        # [K, m, d / 2]: what the query of a head that reads head g is multiplied by, conjugated.
        factors = inverse.permute(1, 2, 0)
        of_rope = torch.stack([as_real_map(one[:kept], interleave) for one in factors])
        maps = torch.stack([as_real_map(one[kept:], interleave) for one in factors])
        rope_queries = torch.einsum("hrc,hcd->hrd", of_rope.repeat_interleave(heads // groups, 0), rows)
    down, up = latent(rest, value, moment, new.kv_lora_rank)
    key_maps, value_maps = up[: rest.shape[0]], up[rest.shape[0] :].view(groups, -1, new.kv_lora_rank)
    kv_b = value_maps if maps is None else torch.cat((maps.mT @ key_maps, value_maps), 1)
    nope = rows if maps is not None else rows[:, :0]
    query = torch.cat((nope, rope_queries, gate), 1).flatten(0, 1)
    kv_a = torch.cat((down, rope_key))
    pieces = [query[:, :-1], query[:, -1], kv_a[:, :-1], kv_a[:, -1]]
    pieces = pieces if config.attention_bias else pieces[::2]
    return [piece.to(parts[0].dtype).contiguous() for piece in (*pieces, kv_b.flatten(0, 1))]


def latent(rest: Tensor, value: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Keys without rotation `[r, D + 1]` and values `[n, D + 1]` → the map to the latent `[rank, D + 1]` and the one
    out of it `[r + n, rank]`, by the principal components of both, keys scaled to the values' size."""

    def size(rows: Tensor) -> Tensor:
        return torch.einsum("rd,de,re->r", rows, moment, rows).clamp(min=0).sqrt().mean()

    scale = size(value) / size(rest).clamp(min=1e-30) if len(rest) else 1.0
    both = torch.cat((rest * scale, value))
    if rank == both.shape[0]:
        components = torch.eye(rank, dtype=both.dtype)
    else:
        components = torch.linalg.eigh(both @ moment @ both.T).eigenvectors.flip(-1)[:, :rank]
    out = components.clone()
    out[: len(rest)] /= scale
    return components.T @ both, out


def wide(rows: Tensor, groups: int) -> Tensor:
    """Each head's query `[H, d, D]` in the block of the key head that it reads, `[H, K · d, D]`."""
    heads, head = rows.shape[0], torch.arange(rows.shape[0])
    blocks = rows.new_zeros(heads, groups, *rows.shape[1:])
    blocks[head, head // (heads // groups)] = rows
    return blocks.flatten(1, 2)
