"""Which part of a tensor that every rank holds whole goes with the heads of this one, under tensor parallelism."""

from collections.abc import Sequence

import torch
from torch import nn


def split_ways(matrix: nn.Module) -> int:
    """Over how many ranks the rows of a linear map are split, 1 where they are not."""
    weight = matrix.weight
    if not hasattr(weight, "device_mesh"):
        return 1
    return weight.device_mesh.size() if all(placement.is_shard(0) for placement in weight.placements) else 1


def own_part(whole: torch.Tensor, matrix: nn.Module, dim: int = 0) -> torch.Tensor:
    """Along `dim`, the part of `whole` that goes with the rows of `matrix` that this rank holds; `whole` itself where
    they are not split.

    The gradient of `whole` is complete on every rank, the parts of all of them gathered.
    """
    if split_ways(matrix) == 1:
        return whole
    from torch.distributed.tensor import DTensor, Replicate, Shard

    everywhere = DTensor.from_local(whole, matrix.weight.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=[Shard(dim % whole.ndim)]).to_local()


def all_parts(part: torch.Tensor, matrix: nn.Module) -> torch.Tensor:
    """The parts `[..., C]` of all ranks, one behind the other along the last dimension, on each of them; what comes
    after must be the same on every rank, and so is its gradient."""
    if split_ways(matrix) == 1:
        return part
    from torch.distributed.tensor import DTensor, Replicate, Shard

    spread = DTensor.from_local(part, matrix.weight.device_mesh, [Shard(part.ndim - 1)], run_check=False)
    return spread.redistribute(placements=[Replicate()]).to_local()


def own_channels(whole: torch.Tensor | None, matrices: Sequence[nn.Module]) -> torch.Tensor | None:
    """The same of `[C, ...]` whose C channels are the outputs of the `matrices`, one behind the other; None of None."""
    if whole is None or not matrices or all(split_ways(matrix) == 1 for matrix in matrices):
        return whole
    sections = whole.split([matrix.out_features for matrix in matrices])
    return torch.cat([own_part(section, matrix) for section, matrix in zip(sections, matrices, strict=True)])
