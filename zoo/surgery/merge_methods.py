"""Merge methods: tensors of several models → one, in float32. The names and meanings are mergekit's.

δ_i = x_i - base is what model i has learned, w_i its weight.

    linear           Σ w_i x_i / Σ w_i (Wortsman et al. 2022, arXiv 2203.05482)
    slerp            along the arc from the base to the other, t of the way (Shoemake 1985)
    task_arithmetic  base + λ Σ w_i δ_i (Ilharco et al. 2023, arXiv 2212.04089)
    ties             the same with δ trimmed to its largest `density`, and without what disagrees with the sign that
                     weighs more; divided by the weights that agree (Yadav et al. 2023, arXiv 2306.01708)
    dare_linear      each number of δ is kept with probability `density` and divided by it (Yu et al. 2024,
    dare_ties        arXiv 2311.03099), then as task_arithmetic, or as ties without the trimming
    passthrough      the tensor as it is, times `scale`
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Directions closer than this are joined on the straight line.
COLLINEAR = 0.9995


@dataclass
class Part:
    """A tensor of one model, and what its parameters are there."""

    tensor: Tensor
    weight: float = 1.0
    density: float = 1.0
    scale: float = 1.0


@dataclass
class Settings:
    """What holds for all models: λ, `t`, whether weights are divided by their sum, the generator of what is drawn."""

    normalize: bool | None = None
    scaling: float = 1.0
    t: float = 0.5
    generator: torch.Generator | None = None


def linear(parts: list[Part], base: Tensor | None, settings: Settings) -> Tensor:
    total = sum(part.weight * part.tensor for part in parts)
    return total / sum(part.weight for part in parts) if settings.normalize is not False else total


def slerp(parts: list[Part], base: Tensor, settings: Settings) -> Tensor:
    """sin((1 - t) θ) / sin θ · base + sin(t θ) / sin θ · other, θ the angle between them as vectors."""
    other, t = parts[0].tensor, settings.t
    cosine = (base.flatten() @ other.flatten()) / (base.norm() * other.norm()).clamp(min=1e-30)
    if cosine.abs() > COLLINEAR:
        return (1 - t) * base + t * other
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * base + torch.sin(t * angle) * other) / torch.sin(angle)


def task_arithmetic(parts: list[Part], base: Tensor, settings: Settings) -> Tensor:
    deltas = [part.tensor - base for part in parts]
    return base + settings.scaling * summed(parts, deltas, settings.normalize is True)


def summed(parts: list[Part], deltas: list[Tensor], normalize: bool) -> Tensor:
    total = sum(part.weight * delta for part, delta in zip(parts, deltas, strict=True))
    return total / sum(part.weight for part in parts) if normalize else total


def ties(parts: list[Part], base: Tensor, settings: Settings) -> Tensor:
    deltas = [trimmed(part.tensor - base, part.density) for part in parts]
    return base + settings.scaling * agreed(parts, deltas, settings.normalize is not False)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """Zeros but in the largest share of the numbers."""
    kept = max(1, int(density * delta.numel()))
    if density >= 1 or not delta.numel():
        return delta
    chosen = delta.abs().flatten().topk(kept).indices
    return torch.zeros_like(delta).flatten().scatter(0, chosen, delta.flatten()[chosen]).view_as(delta)


def agreed(parts: list[Part], deltas: list[Tensor], normalize: bool) -> Tensor:
    """Of each number, the sum of those with the sign that weighs more."""
    weights = torch.tensor([part.weight for part in parts]).view(-1, *[1] * deltas[0].dim())
    weighted = weights * torch.stack(deltas)
    agrees = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    total = (weighted * agrees).sum(0)
    if not normalize:
        return total
    weight = (weights * agrees).sum(0)
    return total / torch.where(weight.abs() < 1e-8, 1.0, weight)


def dropped(part: Part, base: Tensor, generator: torch.Generator) -> Tensor:
    """δ with each number kept with probability `density`, and divided by it."""
    delta = part.tensor - base
    if part.density >= 1:
        return delta
    kept = torch.rand(delta.shape, generator=generator) < part.density
    return delta * kept / part.density


def dare_linear(parts: list[Part], base: Tensor, settings: Settings) -> Tensor:
    deltas = [dropped(part, base, settings.generator) for part in parts]
    return base + settings.scaling * summed(parts, deltas, settings.normalize is True)


def dare_ties(parts: list[Part], base: Tensor, settings: Settings) -> Tensor:
    deltas = [dropped(part, base, settings.generator) for part in parts]
    return base + settings.scaling * agreed(parts, deltas, settings.normalize is True)


def passthrough(parts: list[Part], base: Tensor | None, settings: Settings) -> Tensor:
    return parts[0].tensor if parts[0].scale == 1 else parts[0].tensor * parts[0].scale


@dataclass(frozen=True)
class Method:
    """A function; whether it needs a base; the parameters of each model, and of all; how many models it takes."""

    function: Callable[[list[Part], Tensor | None, Settings], Tensor]
    base: bool = False
    of_model: tuple[str, ...] = ()
    of_all: tuple[str, ...] = ()
    models: int | None = None


TASK = ("normalize", "lambda", "int8_mask")
METHODS = {
    "linear": Method(linear, False, ("weight",), ("normalize",)),
    "slerp": Method(slerp, True, (), ("t",), 1),
    "task_arithmetic": Method(task_arithmetic, True, ("weight",), TASK),
    "ties": Method(ties, True, ("weight", "density"), TASK),
    "dare_linear": Method(dare_linear, True, ("weight", "density"), TASK),
    "dare_ties": Method(dare_ties, True, ("weight", "density"), TASK),
    "passthrough": Method(passthrough, False, ("scale",), (), 1),
}
