"""The residual stream in other coordinates: writers Qᵀ W, readers V Q, for an orthogonal Q `[D, D]`.

    hadamard    ±1 / √D where D is a power of two, else Hadamard ⊗ random: channels with outliers are spread over all
                (Ashkboos et al. 2024, QuaRot, arXiv 2404.00456; the part of it that is in weights)
    random      drawn from all rotations (Haar), by the seed

Nothing changes but the numbers between layers: for quantising, and to see that no result hangs on their axes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from .operation import ARITHMETIC, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError
from .stream import along, stream_of

NAME = "stream_rotation"


class StreamRotation(Operation):
    def __init__(self):
        super().__init__("rotation of the residual stream", applied=NAME, methods=("hadamard", "random"), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return False

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.norm_elementwise_affine or config.norm_type != "rms_norm":
            return []
        note = "channels with outliers are spread: before quantising"
        return [Example({}, Exactness(ARITHMETIC), note, method) for method in self.methods]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where norms tell channels apart."""
        if config.norm_type != "rms_norm":
            raise SurgeryError(
                f"{NAME}: norm_type={config.norm_type!r} takes off a mean; --set norm_type=rms_norm first."
            )
        if config.norm_elementwise_affine:
            raise SurgeryError(f"{NAME}: norms have weights; --set norm_elementwise_affine=false folds them first.")
        if not request.every:
            raise SurgeryError(f"{NAME}: layers share one stream: leave out --layers.")
        stream_of(config, NAME)

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return {}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        stream = stream_of(config, NAME)
        rotation = rotation_of(config.hidden_size, request.method, request.seed)
        places = stream.writers | {name: -1 for names in stream.readers.values() for name in names}

        def turned(dim: int) -> Make:
            return Make(lambda ctx, tensor: [along(tensor, dim, lambda vectors: vectors @ rotation)])

        return [Rule(name, name, turned(dim)) for name, dim in places.items()]


def rotation_of(size: int, method: str | None, seed: int) -> Tensor:
    """Q `[size, size]` in float64, Q Qᵀ = 1."""
    power = size & -size if method == "hadamard" else 1
    turned = hadamard(power)
    if power < size:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(size // power, size // power, generator=generator, dtype=torch.float64)
        orthogonal, triangle = torch.linalg.qr(drawn)
        # With these signs it is drawn evenly from all (Mezzadri 2007, math-ph/0609050).
        turned = torch.kron(turned, (orthogonal * torch.diagonal(triangle).sign()).contiguous())
    return turned


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, divided by its root."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / math.sqrt(size)
