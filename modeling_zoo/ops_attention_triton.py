"""One decoded token over keys that several query heads share: `split_decode`, which reads each key once.

    grouped queries    K heads of keys and values, each read by G = H / K query heads
    latent attention   one key head, whose value is the first channels of the key itself
    sparse attention   the same over chosen rows

The plain form comes first, then the choice, then the kernels in Triton. They split the keys over the whole device and
unite the parts (Flash-Decoding, Dao 2023); which keys are visible they read on the device, so that one recorded launch
serves a cache of fixed size at every length.
"""

from functools import cache, lru_cache

import torch

from .ops_attention_triton_hopper import HopperKernel
from .ops_dispatch import is_recent_cuda
from .ops_triton import KERNEL_DTYPES, multiprocessors, power_of_two, register_operation, tl, triton

LOG2_E = 1.4426950408889634
SCHEMA = (
    "(Tensor query, Tensor key, Tensor? value, int value_width, float scaling, Tensor? positions, Tensor? visible) "
    "-> Tensor"
)

# -- the plain form ----------------------------------------------------------------------------------------------------


def plain_split_decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    value_width: int,
    scaling: float,
    positions: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """`split_decode` in torch, with scores in float32."""
    value = key[..., :value_width] if value is None else value
    if positions is not None:
        rows = positions.long()[:, None, :, None]
        key, value = (part.gather(2, rows.expand(-1, part.shape[1], -1, part.shape[-1])) for part in (key, value))
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2)) * scaling
    if visible is None:
        return torch.matmul(torch.softmax(scores, dim=-1), value.float()).to(query.dtype)
    hidden = ~visible[:, None, None].bool()
    weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dim=-1)
    value = value.float().masked_fill(hidden.transpose(-1, -2), 0.0)
    return torch.matmul(weights.masked_fill(hidden, 0.0), value).to(query.dtype)


# -- which form --------------------------------------------------------------------------------------------------------


def split_decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    value_width: int,
    scaling: float,
    positions: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ · scaling) v of one token, `[B, K, G, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, K, G, v]`.

    Without `value`, values are the first `value_width` channels of the keys. `positions` `[B, k]` reads those keys
    alone; `visible`, booleans `[B, S]` or `[B, k]`, hides some of what is read. Before the first visible one and behind
    the last nothing has a part in the result, whatever it holds; where all is hidden that is zero.
    """
    decode = KERNELS.call if use_triton(query) else plain_split_decode
    return decode(query, key, value, value_width, scaling, positions, visible)


def use_triton(states: torch.Tensor) -> bool:
    """Whether decoding over `states` goes to the kernels: in inference, on a device and in a dtype they are for."""
    able = KERNELS is not None and states.dtype in KERNEL_DTYPES and not torch.is_grad_enabled()
    return able and is_recent_cuda(states.device)


def decode_mask(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, bool]:
    """The booleans `[B, S]` of a mask `[B, 1, 1, S]` or None, and whether that is what it is."""
    if mask is None:
        return None, True
    fits = mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1
    return (mask.flatten(0, 2), True) if fits else (None, False)


# -- the kernels -------------------------------------------------------------------------------------------------------

if triton is not None:

    @triton.jit(do_not_specialize=["count", "m_batch"])
    def _visible_range(visible, bounds, count, m_batch, BLOCK: tl.constexpr):
        """The first visible one of `count` keys of a sequence, one behind the last (equal ones if there is none), and
        whether some between them are hidden."""
        batch = tl.program_id(0)
        visible += batch.to(tl.int64) * m_batch
        group, byte = tl.arange(0, BLOCK // 16), tl.arange(0, 16)
        first = tl.full([BLOCK // 16], 2147483647, tl.int32)
        last, number = tl.zeros([BLOCK // 16], tl.int32), tl.zeros([BLOCK // 16], tl.int32)
        for start in range(0, count, BLOCK):
            at = start + group[:, None] * 16 + byte[None, :]
            bytes_seen = tl.sum((tl.load(visible + at, mask=at < count, other=0) != 0).to(tl.int32), axis=1)
            number, seen = number + bytes_seen, bytes_seen > 0
            first = tl.minimum(first, tl.where(seen, start + group * 16, 2147483647))
            last = tl.maximum(last, tl.where(seen, start + group * 16, 0))
        # The sixteen that hold the first, and those that hold the last.
        at_first, at_last = tl.min(first, axis=0) + byte, tl.max(last, axis=0) + byte
        seen = tl.load(visible + at_last, mask=at_last < count, other=0) != 0
        behind = tl.max(tl.where(seen, at_last + 1, 0), axis=0)
        seen = tl.load(visible + at_first, mask=(at_first >= 0) & (at_first < count), other=0) != 0
        ahead = tl.min(tl.where(seen, at_first, behind), axis=0)
        tl.store(bounds + 3 * batch, ahead)
        tl.store(bounds + 3 * batch + 1, behind)
        tl.store(bounds + 3 * batch + 2, (tl.sum(number, axis=0) < behind - ahead).to(tl.int32))

    @triton.jit
    def _split_range(bounds, batch, count, splits, KEYS: tl.constexpr, MASKED: tl.constexpr):
        """The keys of this program: whole tiles of the visible ones, as many as any other split has, or one less."""
        start, stop = 0, count
        if MASKED:
            start, stop = tl.load(bounds + 3 * batch), tl.load(bounds + 3 * batch + 1)
        tiles = tl.cdiv(stop - start, KEYS)
        before, behind = tiles * tl.program_id(1) // splits, tiles * (tl.program_id(1) + 1) // splits
        return start + before * KEYS, tl.minimum(start + behind * KEYS, stop)

    @triton.jit
    def _load_rows(rows, LIVE: tl.constexpr, WIDTH: tl.constexpr):
        """`[rows, WIDTH]` of which LIVE channels are there, from a pointer to each row; the rest is zero."""
        channel = tl.arange(0, WIDTH)
        if LIVE < WIDTH:
            return tl.load(rows[:, None] + channel[None, :], mask=(channel < LIVE)[None, :], other=0.0)
        return tl.load(rows[:, None] + channel[None, :])

    @triton.jit
    def _store_split(mixed, logs, splits, groups, row, peak, mass, mix, VALUE: tl.constexpr, VALUES: tl.constexpr):
        """The mean value of one split of the keys and the log of its mass, for each query."""
        place = (tl.program_id(2).to(tl.int64) * splits + tl.program_id(1)) * groups + row
        tl.store(logs + place, peak + tl.log2(mass), mask=row < groups)
        mean = mix / tl.where(mass > 0, mass, 1.0)[:, None]
        channel = tl.arange(0, VALUES)
        kept = (row[:, None] < groups) & (channel[None, :] < VALUE)
        tl.store(mixed + place[:, None] * VALUE + channel[None, :], mean.to(mixed.dtype.element_ty), mask=kept)

    @triton.jit(do_not_specialize=["count", "splits", "p_batch", "m_batch"])
    def _read_split(
        query, key, value, positions, visible, bounds, mixed, logs, scale, groups, kv_heads, count, splits,
        q_batch, q_head, q_row, k_batch, k_head, k_token, v_batch, v_head, v_token, p_batch, m_batch,
        FIRST: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, FIRSTS: tl.constexpr, RESTS: tl.constexpr,
        VALUES: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SHARED: tl.constexpr, GATHERED: tl.constexpr,
        MASKED: tl.constexpr,
    ):  # fmt: skip
        """A running softmax of ROWS queries over one split of the keys, whose FIRST + REST channels are two tiles; the
        first of them is the value where SHARED."""
        batch, head = (tl.program_id(2) // kv_heads).to(tl.int64), (tl.program_id(2) % kv_heads).to(tl.int64)
        start, stop = _split_range(bounds, batch, count, splits, KEYS, MASKED)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        q_rows = query + batch * q_batch + head * q_head + tl.minimum(row, groups - 1) * q_row
        q_first = _load_rows(q_rows, FIRST, FIRSTS)
        if REST > 0:
            q_rest = _load_rows(q_rows + FIRST, REST, RESTS)
        if MASKED:
            # Asked about one by one only where some between the first and the last are hidden.
            asked = start + (stop - start) * tl.load(bounds + 3 * batch + 2)
        peak, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
        mix = tl.zeros([ROWS, VALUES], tl.float32)
        for tile in range(start, stop, KEYS):
            column = tile + tl.arange(0, KEYS)
            # The last visible key in place of those behind it, which may hold no numbers.
            inside, at = column < stop, tl.minimum(column, stop - 1)
            if MASKED:
                inside = inside & (tl.load(visible + batch * m_batch + at, mask=column < asked, other=1) != 0)
            if GATHERED:
                at = tl.load(positions + batch * p_batch + at)
            at = at.to(tl.int64)
            k_rows = key + batch * k_batch + head * k_head + at * k_token
            k_first = _load_rows(k_rows, FIRST, FIRSTS)
            scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if REST > 0:
                k_rest = _load_rows(k_rows + FIRST, REST, RESTS)
                scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            scores = tl.where(inside[None, :], scores * scale, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, axis=1))
            weights, fade = tl.exp2(scores - higher[:, None]), tl.exp2(peak - higher)
            v = k_first
            if not SHARED:
                v = _load_rows(value + batch * v_batch + head * v_head + at * v_token, VALUE, VALUES)
            mass, peak = mass * fade + tl.sum(weights, axis=1), higher
            mix = tl.dot(weights.to(v.dtype), v, mix * fade[:, None], input_precision="ieee")
        _store_split(mixed, logs, splits, groups, row, peak, mass, mix, VALUE, VALUES)

    @triton.jit(do_not_specialize=["splits"])
    def _unite_splits(
        mixed, logs, output, groups, splits, VALUE: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
        PARTS: tl.constexpr,
    ):  # fmt: skip
        """The means of all splits weighted by their masses: some channels of one query."""
        row, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
        channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
        split = tl.arange(0, SPLITS)
        log = tl.load(logs + (pair * splits + split) * groups + row, mask=split < splits, other=float("-inf"))
        peak = tl.maximum(tl.max(log, axis=0), -1e30)
        mass = tl.sum(tl.exp2(log - peak), axis=0)
        mix = tl.zeros([CHANNELS], tl.float32)
        for start in range(0, splits, PARTS):
            part = start + tl.arange(0, PARTS)
            place = (pair * splits + part) * groups + row
            share = tl.exp2(tl.load(logs + place, mask=part < splits, other=float("-inf")) - peak)
            kept = (part[:, None] < splits) & (channel[None, :] < VALUE)
            mean = tl.load(mixed + place[:, None] * VALUE + channel[None, :], mask=kept, other=0.0)
            mix += tl.sum(mean * share[:, None], axis=0)
        mix = mix / tl.where(mass > 0, mass, 1.0)
        place = output + (pair * groups + row) * VALUE + channel
        tl.store(place, mix.to(output.dtype.element_ty), mask=channel < VALUE)


# -- their launch, as one operation of torch ---------------------------------------------------------------------------

# Attention that reads values from its keys -> the kernel for one kind of device in place of `_read_split`.
DEVICE_KERNELS = {"latent": HopperKernel}


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    value_width: int,
    scaling: float,
    positions: torch.Tensor | None,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    """`split_decode` by the kernels; by the plain form on a device that they do not fit."""
    query, key, values = together(query), together(key), together(key if value is None else value)
    (batch, kv_heads, groups, width), shared = query.shape, value is None
    count, masked = key.shape[2] if positions is None else positions.shape[1], visible is not None
    widths, kernel = tile_widths(width, value_width, shared), DEVICE_KERNELS.get("latent") if shared else None
    special = kernel is not None and kernel.suits(query, key, value_width)
    tile = kernel.tile if special else tile_shape(key.element_size(), groups, width, value_width, shared, key.device)
    if tile is None:
        return plain_split_decode(query, key, value, value_width, scaling, positions, visible)
    blocks, pairs = -(-groups // tile["ROWS"]), batch * kv_heads
    splits = num_splits(blocks * pairs, -(-count // tile["KEYS"]), query.device)
    output = query.new_empty(batch, kv_heads, groups, value_width)
    mixed = output if splits == 1 else query.new_empty(pairs, splits, groups, value_width, dtype=torch.float32)
    logs = query.new_empty(pairs, splits, groups, dtype=torch.float32)
    chosen = query if positions is None else together(positions)
    seen, bounds = (query, query) if visible is None else visible_ranges(visible, batch)
    tables, sizes = (chosen, seen, bounds, mixed, logs, scaling * LOG2_E, groups), (count, splits)
    ends, flags = (chosen.stride(0), seen.stride(0)), {"GATHERED": positions is not None, "MASKED": masked}
    if special:
        kernel.run((blocks, splits, pairs), query, key, (*tables, *sizes), ends, widths, flags)
    else:
        strides = [stride for part in (query, key, values) for stride in part.stride()[:3]]
        arguments = query, key, values, *tables, kv_heads, *sizes, *strides, *ends
        _read_split[blocks, splits, pairs](*arguments, **widths, **tile, SHARED=shared, **flags)
    return output if splits == 1 else united(mixed, logs, output)


def visible_ranges(visible: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Booleans `[B or 1, S]` as bytes `[B, S]`; what `_visible_range` says of each row, `[B · 3]`."""
    seen = together(visible).expand(batch, -1).view(torch.uint8)
    bounds = torch.empty(3 * batch, dtype=torch.int32, device=visible.device)
    _visible_range[(batch,)](seen, bounds, seen.shape[1], seen.stride(0), BLOCK=16384, num_warps=16)
    return seen, bounds


def united(mixed: torch.Tensor, logs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """`output` `[B, K, G, v]` of the parts `[B · K, splits, G, v]` and their logs."""
    pairs, splits, groups, width = mixed.shape
    channels, padded = min(128, power_of_two(width)), power_of_two(splits)
    tile = {"VALUE": width, "CHANNELS": channels, "SPLITS": padded, "PARTS": min(32, padded)}
    _unite_splits[groups, pairs, -(-width // channels)](mixed, logs, output, groups, splits, **tile)
    return output


def together(states: torch.Tensor) -> torch.Tensor:
    """The same with its last axis contiguous."""
    return states if states.stride(-1) == 1 else states.contiguous()


@cache
def tile_widths(width: int, value_width: int, shared: bool) -> dict[str, int]:
    """The channels of the two tiles of a key and of its value, and the powers of two that hold them."""
    first = value_width if shared else 1 << (width.bit_length() - 1)
    live = {"FIRST": first, "REST": width - first, "VALUE": value_width}
    return live | {name + "S": max(16, power_of_two(count)) if count else 0 for name, count in live.items()}


@cache
def tile_shape(
    size: int, groups: int, width: int, value_width: int, shared: bool, device: torch.device
) -> dict[str, int] | None:
    """Rows and keys of a tile, warps and stages: the largest of those below that the device has shared memory for.

    Numbers have `size` bytes.
    """
    widths = tile_widths(width, value_width, shared)
    width = widths["FIRSTS"] + widths["RESTS"]
    in_key, warps = width + (0 if shared else widths["VALUES"]), 8 if width > 256 else 4
    if size > 2:
        shapes = [(16, 32 if shared else 16, 8, 1), (16, 16, 8, 1)]
    elif shared:
        shapes = [(64, 64, warps, 2)] if groups > 16 else []
        shapes += [(16, 32, 4, 3), (16, 32, 4, 2), (16, 16, 4, 2)]
    else:
        rows, keys = 64 if groups > 16 else 16, min(64, max(16, power_of_two(16384 // in_key + 1) // 2))
        shapes = [(rows, keys, 4, 3), (16, keys, 4, 2), (16, 16, 4, 2)]
    for rows, keys, num_warps, num_stages in shapes:
        if size * (rows * width + num_stages * keys * in_key) <= shared_memory(device):
            return {"ROWS": rows, "KEYS": keys, "num_warps": num_warps, "num_stages": num_stages}
    return None


def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have in shared memory."""
    on_cuda = device.type == "cuda"
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if on_cuda else 2**18


@lru_cache(maxsize=4096)
def num_splits(programs: int, tiles: int, device: torch.device) -> int:
    """Splits of `tiles` tiles of keys for each of so many programs: the fewest that keep the whole device busy."""
    units, most = multiprocessors(device), max(1, tiles // 2)
    choices = sorted({min(most, max(1, rounds * units // programs)) for rounds in range(1, 5)})
    return min(choices, key=lambda splits: -(-programs * splits // units) * (-(-tiles // splits) + 2))


def empty_output(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor | None, value_width: int, *others: object
) -> torch.Tensor:
    """What `launch` returns, without the numbers."""
    return query.new_empty(*query.shape[:-1], value_width)


KERNELS = register_operation(__name__, "split_decode", SCHEMA, launch, empty_output)
