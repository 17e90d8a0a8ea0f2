"""Key-value heads: more of them by repeating, to the bit; fewer by joint principal components of those that share.

Repeating every head n times in place changes nothing but the cache. The other way, n heads become one. Averaging them
(Ainslie et al. 2023, arXiv 2305.13245) loses nearly everything, as trained heads are in bases of their own. Here, for
each frequency (`rotations.py`) the new key is the first principal component of the n old ones, weighted by what the
queries that read each of them are,

    k' = uᴴ W k,  q' = q · conj(u_g / w_g),   W = diag(√E|q_g|²), u the first eigenvector of W E[k kᴴ] W

and the new value V' the first v components of all n values in the metric of the output projections that read them,

    V' = Eᵀ S^½ V,  W_o,h ← W_o,h (S^-½ E)_g,   S = blockdiag(Σ_h W_o,hᵀ W_o,h), E of S^½ E[v vᵀ] S^½

Which heads share matters: all partitions are tried for up to eight heads, above that they are grown greedily.
"""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION, projection_names
from .latent_reduced import with_bias
from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    Exactness,
    Example,
    Make,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    bits_of,
    for_layers,
    has_own,
    in_layers,
)
from .rotations import pair_moments, query_energies, to_complex, to_rows

# Heads for which every partition is tried.
MOST_TRIED = 8
# Weight of the keys beside the values in that choice: measured on the bundled model, 4 heads to 2 cost a perplexity of
# 7.65 by the keys alone, 6.53 with both alike, 5.72 so (2.70 before).
KEYS_COUNT = 0.3
# What acts on the channels or the order of heads between projections.
IN_BETWEEN = {
    "qk_norm": (None,),
    "value_norm": (False,),
    "attention_k_eq_v": (False,),
    "clip_qkv": (None,),
    "attn_output_gate": (None,),
}


class KeyValueHeads(Operation):
    def __init__(self):
        super().__init__(
            "key-value heads", leads=("num_key_value_heads",), methods=("pca", "mean", "first"), parts=("mixer",)
        )

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("num_key_value_heads"), int)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        if has_own(config, "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias"):
            return []
        return [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}):
            return []
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        rows = []
        if groups < heads:
            rows.append(
                Example({self.leads[0]: heads}, repeating(config, heads), "multi-head attention; a larger cache")
            )
        if groups > 1:
            fewer = max(count for count in range(1, groups) if groups % count == 0)
            method = None if all(getattr(config, name) in free for name, free in IN_BETWEEN.items()) else "mean"
            rows.append(
                Example({self.leads[0]: fewer}, Exactness(APPROXIMATE), "a smaller cache: calibrate, then heal", method)
            )
        return rows

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where heads do not divide, or something stands between their projections."""
        groups, wanted = config.num_key_value_heads, request.fields["num_key_value_heads"]
        heads = config.num_attention_heads
        if wanted < 1 or (groups % wanted and wanted % groups) or heads % wanted:
            raise SurgeryError(
                f"num_key_value_heads={wanted} must divide {groups}, or be a multiple of it that divides the {heads} "
                "heads of the queries."
            )
        if config.num_kv_shared_layers and (wanted < groups or not request.every):
            raise SurgeryError(f"num_kv_shared_layers={config.num_kv_shared_layers}: layers share keys and values.")
        if wanted < groups and request.method == "pca":
            for name, free in IN_BETWEEN.items():
                if getattr(config, name) not in free:
                    raise SurgeryError(
                        f"{name}={getattr(config, name)!r} acts on each head, so heads cannot change their basis: "
                        "--method mean averages them."
                    )
            if any(table.get("partial_rotary_factor", 1.0) != 1.0 for table in config.rope_tables.values()):
                raise SurgeryError("partial_rotary_factor leaves channels without rotation: use --method mean.")

    def fewer(self, config: ZooConfig, request: Request) -> bool:
        return request.fields["num_key_value_heads"] < config.num_key_value_heads

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        if self.fewer(config, request):
            return Exactness(APPROXIMATE)
        return repeating(config, request.fields["num_key_value_heads"])

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need("self_attn")] if self.fewer(config, request) and request.method == "pca" else []

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return for_layers(config, request, {"num_key_value_heads": request.fields["num_key_value_heads"]})

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        count, groups = request.fields["num_key_value_heads"], config.num_key_value_heads
        where = in_layers([layer for layer in request.layers if not config.shares_key_values(layer)])
        kinds = ["weight", "bias"] if config.attention_bias else ["weight"]
        if request.method == "pca" and count < groups:
            return [pca_rule(config, new, count, where, statistics)]
        change = {
            "pca": lambda rows: rows.repeat_interleave(count // groups, 0),
            "mean": lambda rows: rows.unflatten(0, (count, -1)).mean(1),
            "first": lambda rows: rows.unflatten(0, (count, -1))[:, 0],
        }[request.method if count < groups else "pca"]
        each = Make(lambda ctx, tensor: [change(tensor.unflatten(0, (groups, -1))).flatten(0, 1)])
        made = [Rule(name, name, each, where=where) for kind in kinds for name in names_of("kv", kind)]
        if config.qk_norm is not None and config.qk_norm_config["weight"] == "per_head":
            norm = Make(lambda ctx, tensor: [change(tensor)])
            made += [
                Rule(name, name, norm, where=where) for name in (f"{ATTENTION}k_norm.{k}" for k in ("weight", "bias"))
            ]
        if config.qk_norm is not None and config.qk_norm_config["scope"] == "full":
            made += [Rule(f"{ATTENTION}k_norm.weight", f"{ATTENTION}k_norm.weight", each, where=where)]
        return made


def repeating(config: ZooConfig, heads: int) -> Exactness:
    """How exact repeated heads are: a norm over all of them sums the same squares in another order."""
    if config.qk_norm is not None and config.qk_norm_config["scope"] == "full":
        return Exactness(ARITHMETIC)
    widths = config.head_dim, config.value_width
    return bits_of(*(count * width for count in (config.num_key_value_heads, heads) for width in widths))


def names_of(letters: str, kind: str) -> list[str]:
    return [f"{ATTENTION}{letter}_proj.{kind}" for letter in letters]


def pca_rule(config: ZooConfig, new: ZooConfig, count: int, where: Any, statistics: Statistics) -> Rule:
    """q, k, v (and biases), o, and sinks where there are any → the same with fewer heads of keys and values."""
    names = [*projection_names(config), f"{ATTENTION}o_proj.weight"]
    if config.attention_sinks is not None:
        names.append(f"{ATTENTION}sinks")
    expected = expected_tensors(new).tensors

    def shapes(ctx: Context) -> list:
        return [expected[name.format(i=ctx.layer)].shape for name in names]

    def make(ctx: Context, *parts: Tensor) -> list[Tensor]:
        return joined(config, count, parts, statistics[ctx.layer, "self_attn"])

    return Rule(names, names, Make(make, shapes), where=where)


def joined(config: ZooConfig, count: int, parts: tuple[Tensor, ...], moment: Tensor) -> list[Tensor]:
    """The tensors of a layer with `count` heads of keys and values, in the order of `parts`."""
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    sinks = parts[-1:] if config.attention_sinks is not None else ()
    inputs = parts[: len(parts) - 1 - len(sinks)]
    query, key, value = with_bias(inputs)
    output = parts[len(inputs)].double().unflatten(1, (heads, -1)).transpose(0, 1)
    moment, interleave, per_group = moment.double(), config.rope_interleave or False, heads // groups
    queries, keys = query.view(heads, width, -1), key.view(groups, width, -1)
    values = value.view(groups, config.value_width, -1)
    shared = Sharing(to_complex(queries, interleave), to_complex(keys, interleave), values, output, moment)
    order, new = [], {"q": [], "k": [], "v": [], "o": []}
    for members in shared.best_partition(groups // count):
        turned, new_key = shared.key_of(members)
        read, new_value = shared.value_of(members)
        new["k"].append(to_rows(new_key[None], interleave)[0])
        new["v"].append(new_value)
        for position, group in enumerate(members):
            for head in range(group * per_group, (group + 1) * per_group):
                order.append(head)
                rotated = to_complex(queries[head : head + 1], interleave)[0] * turned[:, position, None].conj()
                new["q"].append(to_rows(rotated[None], interleave)[0])
                new["o"].append(output[head] @ read[position])
    stacked = {name: torch.cat(rows) for name, rows in new.items() if name != "o"}
    pieces = [stacked[name][:, :-1] for name in "qkv"]
    pieces += [stacked[name][:, -1] for name in "qkv"] if config.attention_bias else []
    pieces.append(torch.cat(new["o"], 1))
    return [piece.to(parts[0].dtype).contiguous() for piece in pieces] + [sink[order] for sink in sinks]


class Sharing:
    """What heads of keys and values lose when some of them become one."""

    def __init__(self, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, moment: Tensor):
        self.keys, self.values, self.groups = keys, values, keys.shape[0]
        self.scales = query_energies(queries, moment, self.groups).clamp(min=1e-30).sqrt()
        moments = pair_moments(keys, moment)
        self.key_moments = self.scales[:, :, None] * moments * self.scales[:, None, :]
        rows = values.flatten(0, 1)
        self.value_moment = (rows @ moment @ rows.T).unflatten(0, (self.groups, -1)).unflatten(-1, (self.groups, -1))
        metric = (output.mT @ output).unflatten(0, (self.groups, -1)).sum(1)
        found, vectors = torch.linalg.eigh(metric)
        root = found.clamp(min=found.max() * 1e-10).sqrt()
        self.root = (vectors * root[:, None, :]) @ vectors.mT
        self.inverse_root = (vectors / root[:, None, :]) @ vectors.mT

    def key_of(self, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(u / w `[d / 2, n]`, the new key's rows `[d / 2, D + 1]`)."""
        index = list(members)
        vector = torch.linalg.eigh(self.key_moments[:, index][:, :, index]).eigenvectors[:, :, -1]
        scales = self.scales[:, index]
        return vector / scales, torch.einsum("jn,njd->jd", vector.conj() * scales, self.keys[index])

    def value_moment_of(self, members: tuple[int, ...]) -> Tensor:
        index = list(members)
        block = self.value_moment[index][:, :, index]
        block = torch.einsum("nij,njmk,mkl->niml", self.root[index], block, self.root[index])
        return block.flatten(2, 3).flatten(0, 1)

    def value_of(self, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(what each head's output projection is multiplied with `[n, v, v]`, the new value's rows `[v, D + 1]`)."""
        index, width = list(members), self.values.shape[1]
        vectors = torch.linalg.eigh(self.value_moment_of(members)).eigenvectors.flip(-1)[:, :width]
        vectors = vectors.unflatten(0, (len(index), width))
        rows = torch.einsum("nik,nij,njd->kd", vectors, self.root[index], self.values[index])
        return self.inverse_root[index] @ vectors, rows

    def kept(self, members: tuple[int, ...]) -> float:
        """What these heads keep as one: a share of the values' energy, and one of the keys' that counts less."""
        index, width = list(members), self.values.shape[1]
        keys = torch.linalg.eigvalsh(self.key_moments[:, index][:, :, index])
        values = torch.linalg.eigvalsh(self.value_moment_of(members))
        total = torch.diagonal(self.key_moments, dim1=1, dim2=2).real.sum(), self.value_energy()
        return (KEYS_COUNT * keys[:, -1].sum() / total[0] + values[-width:].sum() / total[1]).item()

    def value_energy(self) -> Tensor:
        """The energy of all values in the metric of what reads them."""
        each = range(self.groups)
        return sum(self.value_moment_of((index,)).trace() for index in each).clamp(min=1e-30)

    def best_partition(self, size: int) -> list[tuple[int, ...]]:
        """The groups that keep the most, in the order of their first heads."""
        if self.groups <= MOST_TRIED:
            kept = {members: self.kept(members) for members in combinations(range(self.groups), size)}
            return max(partitions(tuple(range(self.groups)), size), key=lambda found: sum(kept[one] for one in found))
        left, found = list(range(self.groups)), []
        while left:
            members = (left[0],)
            while len(members) < size:
                others = [index for index in left if index not in members]
                members += (max(others, key=lambda index: self.kept((*members, index))),)
            found.append(tuple(sorted(members)))
            left = [index for index in left if index not in members]
        return found


def partitions(members: tuple[int, ...], size: int) -> list[list[tuple[int, ...]]]:
    """Every way to part `members` into groups of `size`."""
    if not members:
        return [[]]
    first, rest = members[0], members[1:]
    found = []
    for others in combinations(rest, size - 1):
        left = tuple(index for index in rest if index not in others)
        found += [[(first, *others), *further] for further in partitions(left, size)]
    return found
