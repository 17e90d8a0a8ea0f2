"""Weights and biases of norms moved into the matrices that read them, or weights of one put back.

    V norm(x) = V (w · x̂ + b) = (V diag(w)) x̂ + V b

Without weights of its own a norm commutes with every rotation of the residual stream.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .norm_offset import offsets, shifted
from .operation import (
    ARITHMETIC,
    BITS,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    as_they_are,
)
from .stream import stream_of
from .zero_biases import zeros_beside

FIELD = "norm_elementwise_affine"


class NormFolding(Operation):
    def __init__(self):
        super().__init__("weights of norms", (FIELD,), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(FIELD), bool)

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.norm_elementwise_affine:
            return [
                Example(
                    {FIELD: False}, Exactness(ARITHMETIC), "norms that commute with rotations of the residual stream"
                )
            ]
        exact = self.exactness(config, Request({FIELD: True}, []))
        return [Example({FIELD: True}, exact, "weights of one that can learn")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where something else than a matrix reads a norm, or a bias would have no place."""
        if request.fields[FIELD]:
            return
        stream = stream_of(config, f"{FIELD}=false")
        new = changed(config)
        folded = {f"{norm}.{kind}" for norm in stream.readers for kind in ("weight", "bias")}
        lost = set(expected_tensors(config).tensors) - set(expected_tensors(new).tensors) - folded
        if lost:
            raise SurgeryError(f"{FIELD}=false would leave out {min(lost)}, which no matrix can take.")
        if config.norm_bias:
            places_for_biases(stream.readers, new, f"{FIELD}=false")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        # RMS norm multiplies with one; torch's layer norm takes another way where it has weights.
        exact = request.fields[FIELD] and config.norm_type == "rms_norm"
        return Exactness(BITS if exact else ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return {FIELD: True, "norm_bias": False} if request.fields[FIELD] else without_weights(config)

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        if request.fields[FIELD]:
            return born(config, new)
        stream, shifts = stream_of(config, FIELD), offsets(config)
        rules = shifted(config, new, stream.readers)  # those that stay, of queries and keys
        if config.norm_bias:
            filled = [bias_of(one) for names in stream.readers.values() for one in names]
            rules += zeros_beside(config, new, filled)
        for norm, readers in stream.readers.items():
            rules += absorbing(norm, readers, config, new, shifts.get(f"{norm}.weight", 0.0), keeps_weight=False)
        return rules


def without_weights(config: ZooConfig) -> dict[str, Any]:
    """Fields of a model whose norms have neither weight nor bias."""
    return {FIELD: False, "norm_bias": False, "norm_unit_offset": False, "precision.norm": None} | biases_for(config)


def biases_for(config: ZooConfig) -> dict[str, Any]:
    """Fields with which matrices have the biases that those of norms become."""
    if not config.norm_bias:
        return {}
    fields = as_they_are(config, "attention_out_bias") | {"attention_bias": True, "lm_head_bias": True}
    return fields | ({"mlp_bias": True} if "dense" in config.mlp_layer_types else {})


def changed(config: ZooConfig) -> ZooConfig:
    from .operating import changed_config

    return changed_config(config, without_weights(config))


def bias_of(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias"


def places_for_biases(readers: dict[str, list[str]], new: ZooConfig, field: str) -> None:
    """Raises SurgeryError for a matrix without a bias of its own in the new model."""
    there = expected_tensors(new).tensors
    for weight in (one for names in readers.values() for one in names):
        if bias_of(weight) not in there:
            raise SurgeryError(f"{field}: {weight} has no bias that could take what its norm's bias gives.")


def absorbing(
    norm: str, readers: list[str], config: ZooConfig, new: ZooConfig, offset: float, keeps_weight: bool
) -> list[Rule]:
    """The rule of one norm: its bias, and its weight unless that stays, go into the readers."""
    old, after = expected_tensors(config).tensors, expected_tensors(new).tensors
    weight, bias = f"{norm}.weight", f"{norm}.bias"
    own = [name for name in (weight, bias) if name in old and not (keeps_weight and name == weight)]
    before = [*own, *readers, *(bias_of(one) for one in readers if bias_of(one) in old and bias in old)]
    takes = [bias_of(one) for one in readers] if bias in old else []

    def make(ctx: Any, *tensors: Tensor) -> list[Tensor]:
        given = dict(zip(before, tensors, strict=True))
        scale = given[weight].double() + offset if weight in own else None
        shift = given[bias].double() if bias in own else None
        made = []
        for name in readers:
            matrix = given[name].double()
            made.append((matrix if scale is None else matrix * scale).to(given[name].dtype))
        for name in readers if takes else ():
            there = given.get(bias_of(name))
            sums = given[name].double() @ shift + (0.0 if there is None else there.double())
            made.append(sums.to(given[name].dtype))
        return made

    # A weight that its norm keeps stays outside the rule, whatever is done with it there.
    if not own:
        return []
    targets = [*readers, *takes]
    return [Rule(before, targets, Make(make, lambda ctx: [after[name].shape for name in targets]))]


def born(config: ZooConfig, new: ZooConfig) -> list[Rule]:
    """Weights of one, or offsets of zero, made beside the embedding."""
    known, after, shifts = expected_tensors(config).tensors, expected_tensors(new).tensors, offsets(new)
    added = [name for name in after if name not in known]
    first = next(iter(known))

    def make(ctx: Any, tensor: Tensor) -> list[Tensor]:
        ones = [torch.full(after[name].shape, 1.0 - shifts.get(name, 0.0), dtype=tensor.dtype) for name in added]
        return [tensor, *ones]

    return [Rule(first, [first, *added], Make(make))] if added else []
