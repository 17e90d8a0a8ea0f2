"""Wider heads, by channels of zeros: for kernels that want heads of 64 or 128.

q_proj, k_proj, v_proj     zero rows behind those of each head
o_proj                     zero columns behind those of each head
attention_multiplier       d^-1/2 of the old width
partial_rotary_factor      r / d': the r channels that rotate stay the first, so their table of frequencies does too
norms of queries, keys     the mean is over more channels, d' for d, of which the new ones are zero: with s = √(d / d')
                           x / √(mean' + s² eps) · s w = x / √(mean + eps) · w
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .operation import (
    ARITHMETIC,
    OF_RECURRENCES,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    as_they_are,
    has_own,
)

WIDTH, VALUES = "head_dim", "v_head_dim"
USUAL = (16, 32, 64, 128, 256)
# Gates with a number for each channel of a value.
WIDE_GATES = ("elementwise", "elementwise_softplus")


class HeadWidth(Operation):
    def __init__(self):
        super().__init__("width of heads", (WIDTH,), (VALUES,), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(WIDTH), int)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        return [index for index, name in enumerate(config.attention_mixers) if name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        wider = [width for width in USUAL if width > config.head_dim]
        if not wider or not self.layers(config, {}):
            return []
        return [Example({WIDTH: wider[0]}, Exactness(ARITHMETIC), "channels of zeros, for kernels that want so")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for narrower heads, and where zeros would count."""
        width, values = self.widths(config, request)
        if width < config.head_dim or values < config.value_width:
            narrow = width < config.head_dim
            name, new, old = (WIDTH, width, config.head_dim) if narrow else (VALUES, values, config.value_width)
            raise SurgeryError(
                f"{name}={new} is less than {old}: heads only become wider; fewer of them, or a latent, "
                "make a cache smaller."
            )
        if not request.every:
            raise SurgeryError(f"{WIDTH} is one for all layers here: leave out --layers.")
        if other := {name for name in config.attention_mixers if name not in (None, "grouped_query")}:
            raise SurgeryError(f"{WIDTH}: layers of {min(other)!r}; only grouped-query attention gets wider heads.")
        if has_own(config, WIDTH, VALUES, "num_attention_heads", "num_key_value_heads", "rope_parameters"):
            raise SurgeryError(f"{WIDTH}: layers have heads or rotations of their own in per_layer_config.")
        if config.position_config["alibi_scaled"]:
            raise SurgeryError("position_config.alibi_scaled=True scales by the width of a key, which would change.")
        if any(table.get("rope_type") == "proportional" for table in config.rope_tables.values()):
            raise SurgeryError("rope_type='proportional' spreads its angles over the whole head, which would change.")
        if config.qk_norm is not None:
            self.check_norm(config)
        if values > config.value_width and (config.value_norm or "sub_norm" in config.block_types):
            name = "value_norm=True" if config.value_norm else "block_type='sub_norm'"
            raise SurgeryError(f"{name} takes a mean over the channels of values: set {VALUES}={config.value_width}.")

    def check_norm(self, config: ZooConfig) -> None:
        """Raises SurgeryError for a norm of queries and keys that zeros would change for good."""
        if config.qk_norm != "rms_norm":
            raise SurgeryError(f"qk_norm={config.qk_norm!r} subtracts a mean, so zeros would not stay zeros.")
        if config.qk_norm_config["weight"] == "none":
            raise SurgeryError("qk_norm_config.weight='none' has no weight to undo that more channels share the mean.")

    def widths(self, config: ZooConfig, request: Request) -> tuple[int, int]:
        """Of queries and keys, and of values, which are as wide where they were."""
        width = request.fields[WIDTH]
        same = config.value_width == config.head_dim
        return width, request.get(VALUES, width if same else config.value_width)

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        """Zeros change no sum, but libraries that multiply matrices add up longer rows in another order."""
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        width, values = self.widths(config, request)
        scale = config.head_dim**-0.5 if config.attention_multiplier is None else config.attention_multiplier
        changes = as_they_are(config, *OF_RECURRENCES)
        changes |= {WIDTH: width, VALUES: values, "attention_multiplier": scale}
        if config.rope_tables:
            tables = {name: narrowed(table, config.head_dim, width) for name, table in config.rope_tables.items()}
            changes["rope_parameters"] = tables.get("default", tables)
        if config.qk_norm is not None:
            eps = config.qk_norm_config["eps"]
            changes["qk_norm_config.eps"] = (config.norm_eps if eps is None else eps) * config.head_dim / width
        return changes

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        before, after = expected_tensors(config).tensors, expected_tensors(new).tensors
        wider, rules = Wider(config, new), []
        for layer in request.layers:
            stem = ATTENTION.format(i=layer)
            for name in (name for name in before if name.startswith(stem) and name in after):
                part = name.removeprefix(stem)
                if before[name].shape == after[name].shape and part.partition(".")[0] not in ("q_norm", "k_norm"):
                    continue
                if wider.parts_of(part) is None:
                    raise SurgeryError(f"{WIDTH}: {name} is as wide as heads are, and not known to stay right.")
                rules.append(Rule(name, name, Make(lambda ctx, tensor, part=part: [wider.of(part, tensor)])))
        return rules


class Wider:
    """The tensors of an attention, by their names in it, with heads of `new`."""

    def __init__(self, config: ZooConfig, new: ZooConfig):
        self.config, self.new = config, new

    def parts_of(self, name: str) -> tuple[int, list[tuple[int, int]]] | None:
        """(heads, [(old, new) width of each part of a head]) of a dimension; None for what is no part of a head."""
        config, new = self.config, self.new
        key, value = (config.head_dim, new.head_dim), (config.value_width, new.value_width)
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        gated = [value] if config.attn_output_gate == "query" else []
        known = {"q_proj": (heads, [key, *gated]), "k_proj": (groups, [key]), "v_proj": (groups, [value])}
        known |= {"o_proj": (heads, [value]), "q_norm": (heads, [key]), "k_norm": (groups, [key])}
        if config.attn_output_gate in WIDE_GATES:
            known["output_gate"] = (heads, [value])
        return known.get(name.partition(".")[0])

    def of(self, name: str, tensor: Tensor) -> Tensor:
        heads, parts = self.parts_of(name)
        if name.startswith(("q_norm.", "k_norm.")):
            return self.norm(name, tensor, heads, parts)
        if name == "o_proj.weight":
            return padded(tensor.T, heads, parts).T.contiguous()
        return padded(tensor, heads, parts)

    def norm(self, name: str, tensor: Tensor, heads: int, parts: list[tuple[int, int]]) -> Tensor:
        """A weight `[d]`, `[H · d]` or `[H, d]`, or a bias; the weight makes up for a mean over more channels."""
        config = self.config
        if name.endswith("weight"):
            offset = 1.0 if config.qk_norm == config.norm_type and config.norm_unit_offset else 0.0
            share = (config.head_dim / self.new.head_dim) ** 0.5
            tensor = ((tensor.double() + offset) * share - offset).to(tensor.dtype)
        rows = tensor.flatten()
        made = padded(rows, len(rows) // config.head_dim, parts)
        return made if tensor.ndim == 1 else made.view(heads, -1)


def padded(rows: Tensor, heads: int, parts: list[tuple[int, int]]) -> Tensor:
    """Rows `[H · Σ old, ...]` with zeros behind each part of each head, `[H · Σ new, ...]`."""
    by_head = rows.unflatten(0, (heads, -1)).split([old for old, _ in parts], 1)
    made = []
    for part, (old, new) in zip(by_head, parts, strict=True):
        made += [part, part.new_zeros(heads, new - old, *part.shape[2:])]
    return torch.cat(made, 1).flatten(0, 1)


def narrowed(table: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """A rotation of as many channels in a wider head, of which they are a smaller part."""
    turned = int(old * table.get("partial_rotary_factor", 1.0))
    # Half a channel more: the product is rounded down.
    factor = turned / new if int(new * (turned / new)) == turned else (turned + 0.5) / new
    return table | {"partial_rotary_factor": factor}
