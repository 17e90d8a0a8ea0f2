"""What formats share: scales over blocks, numbers of four bits, fields within words."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# What belongs to a slice of the rows of a matrix.
Part = Callable[[slice], Tensor]
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


def by_rows(
    dtype: torch.dtype, shape: tuple[int, int], values: Part, factors: Part, zeros: Part | None = None
) -> Tensor:
    """(values - zeros) · factors, `[rows, columns]`, in float32 and rounded once to `dtype`; each argument gives what
    belongs to a slice of the rows."""
    result = torch.empty(shape, dtype=dtype)
    for part in parts_of(shape[0]):
        numbers = values(part).float()
        if zeros is not None:
            numbers = numbers - zeros(part)
        result[part] = numbers * factors(part)
    return result


def over_blocks(grid: Tensor, block: tuple[int, int], columns: int, group_of: Tensor | None = None) -> Part:
    """`[rows / block, columns / block]` as it belongs to each number of a slice of rows; blocks at the edges may be
    partial. `group_of`: which column of the grid belongs to each column, where that is no matter of blocks."""

    def part_of(part: slice) -> Tensor:
        chosen = grid[torch.arange(part.start, part.stop) // block[0]]
        if group_of is not None:
            return chosen[:, group_of.long()]
        return chosen if grid.shape[1] == 1 else chosen.repeat_interleave(block[1], dim=1)[:, :columns]

    return part_of


def in_blocks(dtype: torch.dtype, weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """float32(q) · scale, `[..., rows, columns]` with one scale for every block of `block` rows and columns."""
    rows, columns = weight.shape[-2:]
    grids = as_factors(scale).reshape(-1, *scale.shape[-2:])
    matrices = [
        by_rows(dtype, (rows, columns), matrix.__getitem__, over_blocks(grid, block, columns))
        for matrix, grid in zip(weight.reshape(-1, rows, columns), grids, strict=True)
    ]
    return matrices[0].view(weight.shape) if len(matrices) == 1 else torch.stack(matrices).view(weight.shape)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 `[n, words]` -> fields of so many bits `[n, count]`, the first in the lowest, over the borders of words."""
    words = words.long() & 0xFFFFFFFF
    first = torch.arange(count) * bits
    word, offset = first // 32, first % 32
    fields = words[:, word] >> offset
    if 32 % bits:
        following = words[:, (word + 1).clamp_max(words.shape[1] - 1)]
        fields |= torch.where(offset + bits > 32, following << (32 - offset), 0)
    return fields & (2**bits - 1)


def nibbles(packed: Tensor, low_first: bool = True) -> Tensor:
    """Bytes `[..., n]` -> their halves `[..., 2n]`."""
    halves = (packed & 15, packed >> 4)
    return torch.stack(halves if low_first else halves[::-1], dim=-1).flatten(-2)


def e2m1(packed: Tensor) -> Tensor:
    """Two numbers of four bits a byte, the first in the low half, `[..., n]` -> float32 `[..., 2n]`."""
    return torch.tensor(E2M1)[nibbles(packed).int()]
