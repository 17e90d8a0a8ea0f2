"""What formats share: scales over blocks, numbers of four bits, fields within words."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from ..errors import ConversionError

# What belongs to a slice of the rows of a matrix.
Part = Callable[[slice], Tensor]
# Numbers that are computed with at once: few enough to stay in a processor's cache.
AT_ONCE = 2**18
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
# A float of four bits, one of sign, two of exponent, one of mantissa (OCP Microscaling Formats, 2023).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E2M1_LARGEST = 6.0


def as_factors(scale: Tensor) -> Tensor:
    """A scale as float32; bytes are exponents, 2 ** (byte - 127)."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return scale.float()


def parts_of(rows: int, columns: int) -> Iterator[slice]:
    """Slices over so many rows as are computed with at once, a power of two."""
    step = 1 << max(1, AT_ONCE // max(1, columns)).bit_length() - 1
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def by_rows(
    dtype: torch.dtype, shape: tuple[int, int], values: Part, factors: Part, zeros: Part | None = None
) -> Tensor:
    """(values - zeros) · factors, `[rows, columns]`, in float32 and rounded once to `dtype`; each argument gives what
    belongs to a slice of the rows."""
    result = torch.empty(shape, dtype=dtype)
    for part in parts_of(*shape):
        numbers = as_floats(values(part))
        if zeros is not None:
            numbers = numbers - zeros(part)
        result[part] = numbers * factors(part)
    return result


def as_floats(numbers: Tensor) -> Tensor:
    """Numbers as float32; those of eight bits are looked up two at a time."""
    if numbers.dtype not in EIGHT_BITS or not numbers.is_contiguous() or numbers.numel() % 2:
        return numbers.float()
    return look_up(pairs_of(numbers.dtype), numbers.flatten().view(torch.uint16)).view(numbers.shape)


def look_up(pairs: Tensor, codes: Tensor) -> Tensor:
    """The two numbers of float32 that each code stands for, `[..., n]` -> `[..., 2n]`."""
    found = torch.index_select(pairs, 0, codes.flatten().int())
    return found.view(torch.float32).view(*codes.shape[:-1], 2 * codes.shape[-1])


@cache
def pairs_of(dtype: torch.dtype) -> Tensor:
    """`[65536]`, each two numbers of float32 in eight bytes: what two bytes stand for as numbers of `dtype`."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return as_pairs(numbers, numbers)


def as_pairs(low: Tensor, high: Tensor) -> Tensor:
    """`[n]` and `[m]` -> `[n · m]`, each two numbers of float32 in eight bytes: for code i + n · j low[i], high[j]."""
    pairs = torch.stack([low.repeat(len(high)), high.repeat_interleave(len(low))], dim=1)
    return pairs.contiguous().view(torch.int64).flatten()


def over_blocks(grid: Tensor, block: tuple[int, int], columns: int, group_of: Tensor | None = None) -> Part:
    """`[rows / block, columns / block]` as it belongs to each number of a slice of rows; blocks at the edges may be
    partial. `group_of`: which column of the grid belongs to each column, where that is no matter of blocks."""

    def part_of(part: slice) -> Tensor:
        first, last = part.start // block[0], -(-part.stop // block[0])
        if last - first == 1:
            chosen = grid[first:last]  # of all rows
        elif block[0] == 1:
            chosen = grid[part]
        else:
            chosen = grid[torch.arange(part.start, part.stop) // block[0]]
        if group_of is not None:
            return chosen.index_select(1, group_of)
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


def largest_in_blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of every block of `[rows, columns]`, those at the edges partial, in float32. Raises
    ConversionError for numbers that are not finite, which no scale fits."""
    rows, columns = matrix.shape
    strips = [matrix[start : start + block[0]].abs().amax(dim=0).float() for start in range(0, rows, block[0])]
    strips = torch.stack(strips) if block[0] > 1 else matrix.abs().float()
    strips = torch.nn.functional.pad(strips, (0, -columns % block[1]))
    largest = strips.unflatten(1, (-1, block[1])).amax(dim=2)
    return finite(largest)


def finite(numbers: Tensor) -> Tensor:
    """The numbers, which are finite. Raises ConversionError for others, which no scale fits."""
    if not numbers.isfinite().all():
        raise ConversionError("a weight has numbers that are not finite, which cannot be quantised.")
    return numbers


def power_of_two(scale: Tensor) -> Tensor:
    """The power of two that is as large or the next above, among those that a byte of exponent holds."""
    mantissa, exponent = torch.frexp(scale)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(scale), exponent.clamp(-126, 127))


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 `[n, words]` -> fields of so many bits `[n, count]`, the first in the lowest, over the borders of words."""
    if bits in (2, 4, 8):
        as_bytes = words.contiguous().flatten().view(torch.uint8).view(len(words), -1)
        return fields_of_bytes(as_bytes, bits)[:, :count]
    words = words.long() & 0xFFFFFFFF
    first = torch.arange(count) * bits
    word, offset = first // 32, first % 32
    fields = words[:, word] >> offset
    if 32 % bits:
        following = words[:, (word + 1).clamp_max(words.shape[1] - 1)]
        fields |= torch.where(offset + bits > 32, following << (32 - offset), 0)
    return fields & (2**bits - 1)


def fields_of_bytes(packed: Tensor, bits: int) -> Tensor:
    """Bytes `[..., n]` -> their fields of 2, 4 or 8 bits, the first in the lowest, `[..., n · 8 / bits]`."""
    if bits == 8:
        return packed
    fields = torch.index_select(_fields_of_each_byte(bits), 0, packed.flatten().int()).view(torch.uint8)
    return fields.view(*packed.shape[:-1], packed.shape[-1] * 8 // bits)


@cache
def _fields_of_each_byte(bits: int) -> Tensor:
    """`[256]`, the fields of a byte each in a byte of one integer."""
    fields = torch.arange(256).unsqueeze(1) >> torch.arange(0, 8, bits) & 2**bits - 1
    return fields.to(torch.uint8).view({4: torch.int16, 2: torch.int32}[bits]).flatten()


def e2m1(packed: Tensor) -> Tensor:
    """Two numbers of four bits a byte, the first in the low half, `[..., n]` -> float32 `[..., 2n]`."""
    return look_up(_pairs_of_e2m1(), packed)


@cache
def _pairs_of_e2m1() -> Tensor:
    """What each byte stands for."""
    return as_pairs(torch.tensor(E2M1), torch.tensor(E2M1))


# Halfway between two neighbours; where the even code is the upper one, a tie belongs above.
_HALVES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def to_e2m1(numbers: Tensor) -> Tensor:
    """float32 `[..., 2n]` -> the nearest numbers of four bits, ties to the even code, two a byte, `[..., n]`."""
    borders = torch.tensor(_HALVES)
    borders[1::2] = torch.nextafter(borders[1::2], torch.zeros(3))
    codes = torch.bucketize(numbers.abs(), borders, out_int32=True).to(torch.uint8)
    codes |= numbers.signbit().to(torch.uint8) << 3
    return codes[..., ::2] | codes[..., 1::2] << 4


def exponents(largest: Tensor) -> Tensor:
    """The scale of a block of numbers of four bits, 2 ** (floor(log2(largest)) - 2), as bytes (OCP Microscaling)."""
    exponent = torch.frexp(largest)[1] - 3
    return torch.where(largest == 0, 127, exponent.clamp(-127, 127) + 127).to(torch.uint8)
