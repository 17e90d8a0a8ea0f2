"""bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339; 2023, arXiv 2305.14314): nf4, fp4 and int8.

Four bits: `X.weight` bytes `[out · in / 2, 1]`, the high half first; `X.weight.quant_map`, what the 16 codes stand for;
`X.weight.absmax`, a scale for every 64 numbers, itself in eight bits where it is nested (`nested_absmax`,
`nested_quant_map`); shape and offset are JSON in the bytes of `X.weight.quant_state.bitsandbytes__nf4`.
Eight bits: `X.weight` int8 with `X.SCB`, a scale per row, of 127ths.
"""

import json
from functools import partial
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import need_shape
from .packing import AT_ONCE, by_rows, finite, look_up, over_blocks, parts_of
from .stored import Found, Stored, rows_alike

METHODS = ("bitsandbytes",)
_STATE = ".quant_state.bitsandbytes__"
_PLAIN, _NESTED = (".absmax", ".quant_map"), (".nested_absmax", ".nested_quant_map")


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every packed matrix with what belongs to it; raises ConversionError where something is missing or misfits."""
    found, headers = Found(), checkpoint.headers
    for name, tensor in headers.items():
        if _STATE in name:
            base = name.partition(_STATE)[0]
            found.tensors[base] = _four_bits(base, name, checkpoint)
        elif tensor.dtype == torch.int8 and name.endswith(".weight"):
            scale = name.removesuffix("weight") + "SCB"
            if scale not in headers or headers[scale].numel() != tensor.shape[0]:
                raise ConversionError(f"{name!r} is int8 and has no {scale!r} of a number per row: it is incomplete.")
            ways = (decode_int8, encode_int8, rows_alike(2))
            found.tensors[name] = Stored((name, scale), tuple(tensor.shape), *ways)
    for name in headers.keys() - found.taken():
        if name.endswith((".weight_format", _STATE + "nf4", _STATE + "fp4")):
            found.unused.add(name)
        elif name.endswith((*_PLAIN, *_NESTED, ".SCB")):
            raise ConversionError(f"{name!r} belongs to a packed weight that is not there: the checkpoint is damaged.")
    return found


def _four_bits(base: str, name: str, checkpoint: StoredTensors) -> Stored:
    headers = checkpoint.headers
    try:
        state = json.loads(bytes(checkpoint.read(name).tolist()))
        shape, block = tuple(state["shape"]), int(state["blocksize"])
        nested, offset = int(state.get("nested_blocksize", 0)), float(state.get("nested_offset", 0.0))
        if block < 1 or nested < 0:
            raise ValueError(f"blocks of {block} numbers, of {nested} scales")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{name!r} does not say how its weight is packed: {error}.") from error
    names = [base, *(base + ending for ending in (*_PLAIN, *(_NESTED if nested else ())))]
    if missing := [part for part in names if part not in headers]:
        raise ConversionError(f"{base!r} is packed and has no {missing[0]!r}: the checkpoint is incomplete.")
    numbers, scales = 2 * headers[base].numel(), headers[base + ".absmax"].numel()
    if len(shape) != 2 or not 0 <= numbers - prod(shape) < 2 or scales != -(-prod(shape) // block):
        raise ConversionError(
            f"{base!r} holds {numbers} numbers and {scales} scales, which {list(shape)} does not fit."
        )
    need_shape(base + ".quant_map", headers, base, (16,))
    if nested:
        need_shape(base + ".nested_quant_map", headers, base, (256,))
        need_shape(base + ".nested_absmax", headers, base, (-(-scales // nested),))
    how = {"block": block, "nested": nested, "offset": offset}
    ways = (partial(decode, columns=shape[1], **how), partial(encode, **how))
    # Rows after which a block of scales ends, where their scales are in blocks too.
    together = block * max(nested, 1)
    unit = together // gcd(together, shape[1])
    return Stored((*names,), shape, *ways, partial(_rows, columns=shape[1], block=block, nested=nested), unit)


def _rows(start: int, stop: int, columns: int, block: int, nested: int) -> tuple[tuple[int, int] | None, ...]:
    """What belongs to some rows: bytes, scales, and scales of these."""
    first, last = start * columns, stop * columns
    parts = [(first // size, -(-last // size)) for size in (2, block)]
    return (*parts, None, (first // (block * nested), -(-last // (block * nested))), None) if nested else (*parts, None)


def decode(
    dtype: torch.dtype,
    packed: Tensor,
    absmax: Tensor,
    codes: Tensor,
    nested_absmax: Tensor | None = None,
    nested_codes: Tensor | None = None,
    *,
    columns: int,
    block: int,
    nested: int,
    offset: float,
) -> Tensor:
    """codes[half of a byte] · absmax of its block, over the matrix from left to right and down, `[out, in]`."""
    if nested_absmax is not None:
        blocks = torch.arange(absmax.numel()) // nested
        absmax = nested_codes.float()[absmax.int()] * nested_absmax.float()[blocks] + offset
    packed, absmax, codes = packed.flatten(), absmax.float().flatten(), codes.float()
    result = torch.empty(2 * packed.numel() // columns * columns, dtype=dtype)
    # Whole blocks at once. The high half of a byte comes first.
    pairs, step = torch.stack([codes.repeat_interleave(16), codes.repeat(16)], 1), block * max(1, AT_ONCE // block)
    pairs = pairs.contiguous().view(torch.int64).flatten()
    for start in range(0, len(result), step):
        part = result[start : start + step]
        values = look_up(pairs, packed[start // 2 : (start + step) // 2])[: len(part)]
        factors = absmax[start // block : (start + step) // block].repeat_interleave(block)[: len(part)]
        part.copy_(values * factors)
    return result.view(-1, columns)


def decode_int8(dtype: torch.dtype, weight: Tensor, scale: Tensor) -> Tensor:
    """q · SCB / 127."""
    factors = scale.float().view(-1, 1) / 127
    return by_rows(dtype, tuple(weight.shape), weight.__getitem__, over_blocks(factors, (1, 1), weight.shape[1]))


def encode(
    weight: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codes: Tensor,
    nested_absmax: Tensor | None = None,
    nested_codes: Tensor | None = None,
    *,
    block: int,
    nested: int,
    offset: float,
) -> tuple[Tensor, ...]:
    """The nearest codes of each block, as bitsandbytes rounds; scales that are nested keep their offset."""
    fields, largest = nearest(weight.flatten(), codes.float(), block)
    fields = torch.nn.functional.pad(fields, (0, len(fields) % 2))
    parts = (fields[::2] << 4 | fields[1::2]).view(packed.shape)
    if nested_absmax is None:
        return parts, largest.to(absmax.dtype).view(absmax.shape), codes
    scales, of_scales = nearest(largest - offset, nested_codes.float(), nested)
    of_scales = of_scales.to(nested_absmax.dtype).view(nested_absmax.shape)
    return parts, scales.view(absmax.shape), codes, of_scales, nested_codes


def nearest(numbers: Tensor, codes: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Of `[n]` numbers the code next to number / largest of its block, and the largest magnitudes `[n / block]`. Raises
    ConversionError for numbers that are not finite."""
    order = codes.argsort()
    halfway = (codes[order[:-1]] + codes[order[1:]]) / 2
    fields, largest = torch.empty(len(numbers), dtype=torch.uint8), []
    step = block * max(1, AT_ONCE // block)
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step].float()
        blocks = torch.nn.functional.pad(part, (0, -len(part) % block)).view(-1, block)
        largest.append(finite(blocks.abs().amax(dim=1)))
        quotients = blocks * (1 / largest[-1].clamp(min=1e-38)).unsqueeze(1)
        found = order[torch.bucketize(quotients.clamp(-1, 1), halfway)].to(torch.uint8)
        fields[start : start + step] = found.flatten()[: len(part)]
    return fields, torch.cat(largest)


def encode_int8(weight: Tensor, old: Tensor, old_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and the largest magnitude of each row."""
    largest = finite(weight.float().abs().amax(dim=1))
    factors = 127 / torch.where(largest == 0, 1, largest).unsqueeze(1)
    q = torch.empty(old.shape, dtype=old.dtype)
    for part in parts_of(*weight.shape):
        q[part] = (weight[part].float() * factors[part]).round_().to(old.dtype)
    return q, largest.to(old_scale.dtype).view(old_scale.shape)
