"""FP8: weights of eight bits, each matrix with one scale, one per row, or one per block of rows and columns.

W[i, j] = float32(q[i, j]) · scale[i // rows, j // columns]: called an inverse, the scale multiplies. Blocks at the
edges are partial. DeepSeek-V3's (arXiv 2412.19437, §3.3), Qwen3's and MiniMax's are 128 × 128 with scales in float32 or
bfloat16; ue8m0 scales are powers of two; Mistral's are one number; FBGEMM's (Llama 3.1) one per row. DeepSeek-V4's
experts are floats of four bits, two a byte, the first in the low half, 32 of a row to a scale.
"""

from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import setting
from .packing import (
    EIGHT_BITS,
    as_factors,
    by_rows,
    e2m1,
    in_blocks,
    largest_in_blocks,
    over_blocks,
    parts_of,
    power_of_two,
)
from .rounding import mxfp4
from .stored import Found, Stored, rows_alike

METHODS = ("fp8", "fbgemm_fp8")
FLOAT8 = EIGHT_BITS
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
# The name of a scale: after the whole name of its weight, or in place of its last word.
_ENDINGS, _LAST_WORDS = ("_scale_inv", "_scale"), ("scale", "qscale_weight")
# Scales of activations and of the cache, which no weight is multiplied with.
UNUSED = ("activation_scale", "input_scale", "qscale_act", "k_scale", "v_scale", "q_scale", "output_scale")


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every weight of eight bits with its scale; raises ConversionError where one of the two is missing or misfits."""
    found, headers, block = Found(), checkpoint.headers, _block(scheme)
    for name, weight in headers.items():
        if weight.dtype in FLOAT8:
            scale = scale_of(name, headers)
            blocks = block_of(name, weight, scale, headers[scale], block)
            found.tensors[name] = stored(name, scale, tuple(weight.shape), blocks)
        elif weight.dtype == torch.int8 and weight.dim() == 2:
            found.tensors[name] = _of_halves(name, weight, headers)
    taken = found.taken()
    for name in headers.keys() - taken:
        if name.endswith(UNUSED):
            found.unused.add(name)
        elif name.endswith(_ENDINGS):
            raise ConversionError(f"{name!r} is a scale without a weight of eight bits: the checkpoint is damaged.")
    return found


def _block(scheme: dict[str, Any]) -> list[int] | None:
    """Rows and columns of a block; None where the scheme names none. Raises ConversionError for what is no block."""
    block = setting(scheme, "weight_block_size", list)
    if block is not None and (len(block) != 2 or not all(type(side) is int and side > 0 for side in block)):
        raise ConversionError(f"quantization_config has weight_block_size={block!r}: a block has two sides.")
    return block


def stored(name: str, scale: str, shape: tuple[int, ...], block: tuple[int, int] | None) -> Stored:
    """Numbers of eight bits and their scales, one for each block; None: one for all."""
    stacked = len(shape) > 2
    rows = partial(_rows, block=(1, 1) if stacked and block else block)
    unit = 1 if stacked or block is None else block[0]
    return Stored((name, scale), shape, partial(decode, block=block), partial(encode, block=block), rows, unit)


def _rows(start: int, stop: int, block: tuple[int, int] | None) -> tuple[tuple[int, int] | None, ...]:
    """The rows of the numbers and of the scales that belong to some rows of a matrix, or entries of a stack."""
    return (start, stop), block and (start // block[0], -(-stop // block[0]))


def _of_halves(name: str, weight: Tensor, headers: dict[str, Tensor]) -> Stored:
    """A matrix of two numbers a byte. Raises ConversionError for one without a scale, or whose scales do not fit."""
    scale, (rows, half) = scale_of(name, headers), weight.shape
    if list(headers[scale].shape) != [rows, half // 16] or half % 16:
        said = f"{list(headers[scale].shape)} beside {name!r} of {list(weight.shape)} bytes"
        raise ConversionError(f"{scale!r} is {said}: 32 numbers belong to each scale.")
    return Stored((name, scale), (rows, 2 * half), decode_halves, encode_halves, rows_alike(2))


def decode_halves(dtype: torch.dtype, weight: Tensor, scale: Tensor) -> Tensor:
    """Bytes `[out, in / 2]` and `[out, in / 32]` -> e2m1 · scale, `[out, in]`."""
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    factors = over_blocks(as_factors(scale), (1, 32), columns)
    return by_rows(dtype, (rows, columns), lambda part: e2m1(weight[part].view(torch.uint8)), factors)


def encode_halves(weight: Tensor, old: Tensor, old_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same the other way."""
    codes, scale = mxfp4(weight, old_scale)
    return codes.view(old.dtype), scale


def scale_of(name: str, headers: dict[str, Tensor]) -> str:
    """The name of the scale of a weight. Raises ConversionError where there is none."""
    beginning = name.removesuffix("weight")
    for candidate in (*(name + ending for ending in _ENDINGS), *(beginning + word for word in _LAST_WORDS)):
        if candidate in headers:
            return candidate
    dtype, names = str(headers[name].dtype).removeprefix("torch."), f"{name}{_ENDINGS[0]} or {name}{_ENDINGS[1]}"
    raise ConversionError(f"{name!r} is {dtype} and has no scale ({names}): the checkpoint is incomplete.")


def block_of(
    name: str, weight: Tensor, scale_name: str, scale: Tensor, block: list[int] | None
) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None: the whole tensor does. Raises ConversionError for scales that do not
    fit the weight."""
    if scale.numel() == 1:
        return None
    *lead, rows, columns = weight.shape
    grid = list(scale.shape)
    if grid == [*lead, rows, 1] or grid == [*lead, rows]:
        return 1, columns
    if lead and grid in ([*lead], [*lead, 1, 1]):
        return rows, columns
    if isinstance(block, (list, tuple)) and len(block) == 2:
        wanted = [*lead, ceil(rows / block[0]), ceil(columns / block[1])]
        if grid == wanted:
            return tuple(block)
        said = f"blocks of {block[0]} × {block[1]} make it {wanted}"
    else:
        said = "config.json names no weight_block_size"
    raise ConversionError(f"{scale_name!r} is {grid} beside {name!r} of {list(weight.shape)}, but {said}.")


def decode(dtype: torch.dtype, weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """float32(q) · scale, rounded once to `dtype`."""
    if block is None:
        scale, block = scale.reshape([1] * weight.dim()).expand(*weight.shape[:-2], 1, 1), weight.shape[-2:]
    elif scale.dim() < weight.dim():
        scale = scale.reshape(*weight.shape[:-2], -1, 1)
    return in_blocks(dtype, weight, scale, block)


def encode(weight: Tensor, old: Tensor, old_scale: Tensor, block: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """The weight as numbers of `old`'s dtype and scales of `old_scale`'s: the largest of a block becomes the largest
    number there is, a scale that is a power of two is rounded up."""
    largest, rows, columns = _LARGEST[old.dtype], *weight.shape[-2:]
    matrices = weight.reshape(1, -1, columns) if block is None else weight.reshape(-1, rows, columns)
    block = block or tuple(matrices.shape[-2:])
    result, scales = torch.empty(matrices.shape, dtype=old.dtype), []
    for number, matrix in enumerate(matrices):
        scale = largest_in_blocks(matrix, block) / largest
        scale[scale == 0] = 1.0
        if old_scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
            scale = power_of_two(scale)
        scale = scale.to(torch.float32 if old_scale.dtype == torch.uint8 else old_scale.dtype)
        factors = over_blocks(scale.float(), block, columns)
        for part in parts_of(*matrix.shape):
            quotient = (matrix[part].float() / factors(part)).clamp_(-largest, largest)
            result[number, part] = (quotient.round_() if old.dtype == torch.int8 else quotient).to(old.dtype)
        scales.append(scale)
    scale = torch.stack(scales)
    if old_scale.dtype == torch.uint8:
        scale = (scale.log2() + 127).to(torch.uint8)
    return result.view(old.shape), scale.reshape(old_scale.shape)
