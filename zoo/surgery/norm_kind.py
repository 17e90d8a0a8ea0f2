"""Layer norm → RMS norm. On a residual stream whose mean is zero both are the same, and what writes to it can take the
mean off:

    C = I - 11ᵀ / D       every writer W → C W, its bias → C b, rows of tables → C e
    norm's bias b         readers V get the bias V b

(Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, section 3.1.)
"""

from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .norm_folding import absorbing, bias_of, biases_for, places_for_biases
from .operation import ARITHMETIC, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError
from .stream import Stream, along, stream_of

FIELD = "norm_type"


class NormKind(Operation):
    def __init__(self):
        super().__init__("layer norm → RMS norm", (FIELD,), ("norm_bias",), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return fields.get(FIELD) == "rms_norm" and not fields.get("norm_bias")

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.norm_type != "layer_norm":
            return []
        return [Example({FIELD: "rms_norm"}, Exactness(ARITHMETIC), "as most families and kernels have it")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where the mean cannot be taken off by what writes, or other norms would change."""
        if config.qk_norm == "layer_norm":
            raise SurgeryError(f"{FIELD}: qk_norm='layer_norm' takes off means that no weight of this model can.")
        stream = stream_of(config, FIELD)
        if config.norm_bias:
            places_for_biases(stream.readers, self.after(config), FIELD)

    def after(self, config: ZooConfig) -> ZooConfig:
        from .operating import changed_config

        return changed_config(config, self.changes(config))

    def changes(self, config: ZooConfig) -> dict[str, Any]:
        return {FIELD: "rms_norm", "norm_bias": False, "precision.norm": None} | biases_for(config)

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return self.changes(config)

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        stream = stream_of(config, FIELD)
        rules = centring(stream, config, new)
        for norm, readers in stream.readers.items() if config.norm_bias else ():
            rules += absorbing(norm, readers, config, new, 0.0, keeps_weight=True)
        return rules


def centred(vectors: Tensor) -> Tensor:
    """C x = x - mean(x), `[..., D]`."""
    return vectors - vectors.mean(-1, keepdim=True)


def centring(stream: Stream, config: ZooConfig, new: ZooConfig) -> list[Rule]:
    """Writers without a mean; biases that come with the new fields are zeros."""
    old, after = expected_tensors(config).tensors, expected_tensors(new).tensors
    filled = {bias_of(one) for names in stream.readers.values() for one in names}
    rules = []
    for name, dim in stream.writers.items():
        bias = bias_of(name)
        added = bias != name and bias in after and bias not in old and bias not in filled

        def make(ctx: Any, tensor: Tensor, dim: int = dim, added: bool = added) -> list[Tensor]:
            new = along(tensor, dim, centred)
            return [new, new.new_zeros(len(new))] if added else [new]

        rules.append(Rule(name, [name, bias] if added else name, Make(make)))
    return rules
