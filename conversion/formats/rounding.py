"""Another weight in the scheme of an old one, to the nearest number: scales from the extremes of each group.

Integers of b bits in groups (Frantar et al. 2022; Lin et al. 2023): scale = (max - min) / (2 ** b - 1) and
zero = round(-min / scale), where 0 counts among the numbers; symmetric ones have scale = 2 · max |w| / (2 ** b - 1) and
their zero in the middle. What is stored is round(w / scale + zero) between 0 and 2 ** b - 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .packing import E2M1_LARGEST, as_factors, exponents, finite, over_blocks, parts_of, to_e2m1

_FP8_LARGEST, _FP8_SMALL = 448.0, 0.125


def extremes(matrix: Tensor, block: tuple[int, int], group_of: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The smallest and largest number, zero among them, of every block of `[rows, columns]`, or of the columns that
    `group_of` says belong together, in float32. Raises ConversionError for numbers that are not finite."""
    rows, columns = matrix.shape
    found = []
    for sign in (-1, 1):
        # The largest of each block of rows, by column; what is below zero does not count.
        strips = [(sign * matrix[first : first + block[0]].float()).amax(dim=0) for first in range(0, rows, block[0])]
        strips = torch.stack(strips).clamp_min_(0)
        if group_of is None:
            found.append(pad(strips, (0, -columns % block[1])).unflatten(1, (-1, block[1])).amax(dim=2))
        else:
            groups = torch.zeros(len(strips), int(group_of.max()) + 1)
            found.append(groups.scatter_reduce_(1, group_of.long().expand_as(strips), strips, "amax"))
    return -finite(found[0]), finite(found[1])


def integer_grid(
    lowest: Tensor, highest: Tensor, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(scales in `dtype`, zeros as whole numbers from 0 to 2 ** bits - 1) of groups with such extremes."""
    top = 2**bits - 1
    scale = torch.maximum(-lowest, highest) * 2 / top if symmetric else (highest - lowest) / top
    scale[scale == 0] = 1.0
    zero = torch.full_like(scale, (top + 1) // 2) if symmetric else (-lowest / scale).round().clamp(0, top)
    return scale.to(dtype), zero.to(torch.int64)


def to_fields(
    matrix: Tensor, scale: Tensor, zero: Tensor, block: tuple[int, int], bits: int, group_of: Tensor | None = None
) -> Tensor:
    """round(w / scale + zero) within 0 to 2 ** bits - 1, `[rows, columns]`, a byte each."""
    columns, fields = matrix.shape[1], torch.empty(matrix.shape, dtype=torch.uint8)
    middle = 2 ** (bits - 1)  # which is taken off, since numbers near zero keep more digits
    grids = (scale.float(), zero.float() - middle)
    factors, zeros = (over_blocks(grid, block, columns, group_of) for grid in grids)
    for part in parts_of(*matrix.shape):
        numbers = (matrix[part].float() / factors(part) + zeros(part)).clamp_(-middle, middle - 1)
        fields[part] = numbers.round_() + middle
    return fields


def pack(fields: Tensor, bits: int) -> Tensor:
    """Fields of so many bits `[n, count]` -> int32 `[n, words]`, the first in the lowest, over the borders of words."""
    rows, count = fields.shape
    first = torch.arange(count) * bits
    word, offset = first // 32, first % 32
    packed = torch.empty(rows, -(-count * bits // 32), dtype=torch.int32)
    for part in parts_of(rows, count):
        numbers = fields[part].long()
        words = torch.zeros(len(numbers), packed.shape[1] + 1, dtype=torch.int64)
        words.index_add_(1, word, (numbers << offset) & 0xFFFFFFFF)
        words.index_add_(1, word + 1, torch.where(offset + bits > 32, numbers >> (32 - offset), 0))
        packed[part] = words[:, :-1].to(torch.int32)
    return packed


def four_bit_floats(weight: Tensor, factors: Tensor, size: int) -> Tensor:
    """w / factor as the nearest numbers of four bits, two a byte; `size` numbers of a row share one of `factors`."""
    columns = weight.shape[-1]
    matrix, grid = weight.reshape(-1, columns), over_blocks(factors.reshape(-1, factors.shape[-1]), (1, size), columns)
    packed = torch.empty(len(matrix), columns // 2, dtype=torch.uint8)
    for part in parts_of(*matrix.shape):
        packed[part] = to_e2m1(matrix[part].float() / grid(part))
    return packed.view(*weight.shape[:-1], -1)


def mxfp4(weight: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(bytes of two numbers, scales of 32 that are powers of two, stored as `like`)."""
    scale = exponents(largest_of_each(weight, 32))
    return four_bit_floats(weight, as_factors(scale), 32), scale.view(like.dtype)


def nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(bytes of two numbers, a scale in FP8 for 16 of them, the scale of all): the largest number of the tensor is the
    largest of both."""
    largest = largest_of_each(weight, 16)
    whole = largest.max() / (E2M1_LARGEST * _FP8_LARGEST)
    whole = whole if whole > 0 else torch.ones(())
    scale = (largest / E2M1_LARGEST / whole).to(torch.float8_e4m3fn)
    scale = torch.where(scale.float() == 0, torch.tensor(_FP8_SMALL), scale.float())
    return four_bit_floats(weight, scale * whole, 16), scale.to(torch.float8_e4m3fn), whole


def largest_of_each(weight: Tensor, size: int) -> Tensor:
    """The largest magnitude of every `size` numbers of a row, `[..., columns / size]`."""
    return finite(weight.unflatten(-1, (-1, size)).abs().amax(dim=-1).float())
