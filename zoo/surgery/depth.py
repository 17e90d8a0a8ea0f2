"""More layers, or fewer.

    more, identity   copies are put behind layers, with zeros where a branch is added to the residual stream: to the bit
                     (LLaMA Pro, Wu et al. 2024, arXiv 2401.02415)
    more, repeat     copies as they are (Kim et al. 2023, SOLAR, arXiv 2312.15166)
    fewer            those named are left out, or those whose loss moves the model least, each measured alone

What a layer is, its type, its window, its own numbers, goes with it.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described
from configuration_zoo.vocabulary import WHOLE_STACK_BLOCKS
from conversion.engine.rules import Drop, Rule
from conversion.engine.zoo_side import expected_tensors

from .operation import (
    APPROXIMATE,
    BITS,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    own_fields,
)

LAYER = "model.layers."
# The last projection of a branch, and the norm that stands behind it in blocks that have one.
LAST = ("o_proj", "out_proj", "down_proj", "fc2_latent_proj")
LAST_NORMS = ("attn_output_norm", "mlp_output_norm")
# What a layer reads of other layers, or of its own number.
TIED_FIELDS = {
    "num_kv_shared_layers": "layers share keys and values",
    "hidden_size_per_layer_input": "an embedding has a part for each layer",
    "scale_attn_by_inverse_layer_idx": "scores are scaled by the number of a layer",
}
TIED_BLOCKS = (*WHOLE_STACK_BLOCKS, "shared_block", "shortcut")
TIED_MIXERS = ("lightning_attention", "differential", "value_residual")
# Blocks that norm or scale the residual stream itself.
LOUD_BLOCKS = ("post_norm", "pre_norm_residual", "scaled_sandwich_norm")


class Depth(Operation):
    def __init__(self):
        super().__init__(
            "depth", ("num_hidden_layers",), methods=("identity", "repeat"), parts=(), renumbers=True, invents=True
        )

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("num_hidden_layers"), int)

    def number_to_choose(self, config: ZooConfig, fields: dict[str, Any]) -> int | None:
        fewer = config.num_hidden_layers - fields["num_hidden_layers"]
        return fewer if fewer > 0 else None

    def for_one(self, config: ZooConfig, fields: dict[str, Any]) -> dict[str, Any]:
        return {"num_hidden_layers": config.num_hidden_layers - 1}

    def examples(self, config: ZooConfig) -> list[Example]:
        count = config.num_hidden_layers
        more = Example({"num_hidden_layers": count + 1}, Exactness(BITS), "a further layer, silent until it learns")
        fewer = Example({"num_hidden_layers": count - 1}, Exactness(APPROXIMATE), "the layer that costs least goes")
        return [more, fewer] if count > 1 else [more]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where layers depend on each other or on their place, or numbers do not agree."""
        for name, reason in TIED_FIELDS.items():
            if getattr(config, name):
                raise SurgeryError(f"{name}={getattr(config, name)!r}: {reason}, so none can be left out or repeated.")
        words = {*config.block_types, *config.attention_mixers, *config.recurrent_mixers, *(config.indexer_types or ())}
        if tied := sorted(words & {*TIED_BLOCKS, *TIED_MIXERS, "shared"}):
            raise SurgeryError(f"{tied[0]!r} depends on the number of its layer, or on another: none can be left out.")
        wanted, count = request.fields["num_hidden_layers"], config.num_hidden_layers
        if wanted < 1:
            raise SurgeryError(f"num_hidden_layers={wanted} must be at least 1.")
        if wanted > 2 * count:
            raise SurgeryError(f"num_hidden_layers={wanted}: at most one copy of each of {count} layers at a time.")
        if wanted > count and request.method != "repeat" and gives_input(config):
            raise SurgeryError("zero_expert_type='identity': a copy of a layer would give its input: --method repeat.")
        loud = set(config.block_types) & set(LOUD_BLOCKS)
        if wanted > count and request.method != "repeat" and loud:
            raise SurgeryError(f"block_type={min(loud)!r} changes what a branch joins: --method repeat.")
        if not request.every and len(request.layers) != abs(wanted - count):
            raise SurgeryError(
                f"layers names {len(request.layers)}, but num_hidden_layers={wanted} of {count} asks for "
                f"{abs(wanted - count)}."
            )

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        more = request.fields["num_hidden_layers"] > config.num_hidden_layers
        return Exactness(BITS if more and request.method != "repeat" else APPROXIMATE)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        origins = [origin for origin, _ in self.origins(config, request)]
        changes: dict[str, Any] = {"num_hidden_layers": len(origins)}
        for name in per_layer_fields():
            value = getattr(config, name)
            if isinstance(value, list) and len(value) == config.num_hidden_layers:
                changes[name] = [value[origin] for origin in origins]
        if own := own_fields(config):
            changes["per_layer_config"] = {str(new): own[old] for new, old in enumerate(origins) if old in own}
        return changes

    def origins(self, config: ZooConfig, request: Request) -> list[tuple[int, bool]]:
        """(the layer it was, whether it is a copy) of each new layer."""
        count, wanted = config.num_hidden_layers, request.fields["num_hidden_layers"]
        if wanted <= count:
            return [(layer, False) for layer in range(count) if layer not in request.layers]
        copied = set(request.layers)
        if request.every:
            copied = {(number + 1) * count // (wanted - count) - 1 for number in range(wanted - count)}
        return [entry for layer in range(count) for entry in ((layer, False), (layer, True))[: 1 + (layer in copied)]]

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        places: dict[int, list[tuple[int, bool]]] = {}
        for number, (origin, is_copy) in enumerate(self.origins(config, request)):
            places.setdefault(origin, []).append((number, is_copy and request.method != "repeat"))
        rules = []
        for name in expected_tensors(config).tensors:
            if not name.startswith(LAYER):
                continue
            layer, _, rest = name.removeprefix(LAYER).partition(".")
            found = places.get(int(layer), [])
            if not found:
                rules.append(Drop(name))
            elif [number for number, _ in found] != [int(layer)]:
                silent = [is_copy and is_last(rest) for _, is_copy in found]
                unit = 1.0 if config.norm_unit_offset and is_last_norm(rest) else 0.0
                rules.append(Rule(name, [f"{LAYER}{number}.{rest}" for number, _ in found], copies(silent, unit)))
        return rules


def copies(silent: list[bool], unit: float) -> Make:
    """As many tensors, those that are silent full of what gives zero."""

    def make(ctx: Any, tensor: Tensor) -> list[Tensor]:
        return [torch.full_like(tensor, 0.0 - unit) if zero else tensor for zero in silent]

    return Make(make)


def is_last_norm(rest: str) -> bool:
    return rest.partition(".")[0] in LAST_NORMS


def is_last(rest: str) -> bool:
    """Whether a tensor of a layer is what a branch gives to the residual stream: "mlp.down_proj.weight"."""
    return is_last_norm(rest) or any(part.removesuffix("_bias") in LAST for part in rest.split("."))


def per_layer_fields() -> list[str]:
    """Fields with an entry for each layer."""
    return [name for name, one in described(ZooConfig).items() if getattr(one.metadata.get("kind"), "per_layer", False)]


def gives_input(config: ZooConfig) -> bool:
    """Whether experts of a layer give their input as it is, which no weight silences."""
    layers = [config.per_layer_config[index] for index in range(config.num_hidden_layers)]
    return any(layer.zero_expert_type == "identity" and layer.zero_expert_num for layer in layers)
