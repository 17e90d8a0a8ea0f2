"""What formats share: scales over blocks, numbers of four bits, fields within words."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that are computed with at once: what bounds the memory of decoding.
ROWS = 1024
# A float of four bits, one of sign, two of exponent, one of mantissa (OCP Microscaling Formats, 2023).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def as_factors(scale: Tensor) -> Tensor:
    """A scale as float32; bytes are exponents, 2 ** (byte - 127)."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return scale.float()


def parts_of(rows: int) -> Iterator[slice]:
    """Slices over so many rows as are computed with at once."""
    for start in range(0, rows, ROWS):
        yield slice(start, min(start + ROWS, rows))


def scaled(dtype: torch.dtype, weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """float32(q) · scale, `[..., rows, columns]` with one scale for every block of `block` rows and columns (those at
    the edges may be partial), rounded once."""
    rows, columns = weight.shape[-2:]
    result = torch.empty(weight.shape, dtype=dtype)
    grids = as_factors(scale).reshape(-1, *scale.shape[-2:])
    matrices = zip(weight.reshape(-1, rows, columns), grids, result.view(-1, rows, columns), strict=True)
    for matrix, grid, target in matrices:
        for part in parts_of(rows):
            factors = grid[torch.arange(part.start, part.stop) // block[0]]
            if grid.shape[1] > 1:
                factors = factors.repeat_interleave(block[1], dim=1)[:, :columns]
            target[part] = matrix[part].float().mul_(factors)
    return result


def nibbles(packed: Tensor, low_first: bool = True) -> Tensor:
    """Bytes `[..., n]` -> their halves `[..., 2n]`."""
    halves = (packed & 15, packed >> 4)
    return torch.stack(halves if low_first else halves[::-1], dim=-1).flatten(-2)


def e2m1(packed: Tensor) -> Tensor:
    """Two numbers of four bits a byte, the first in the low half, `[..., n]` -> float32 `[..., 2n]`."""
    return torch.tensor(E2M1)[nibbles(packed).int()]
