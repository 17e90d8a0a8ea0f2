"""One decoded token over cached latents on Hopper (compute capability 9): the kernel in Gluon, Triton's lower half.

What a compiler of Triton leaves to chance is written down here: both warpgroups read one tile of 64 keys from shared
memory, once for the scores and once as the values; each multiplies half of the keys with the queries, then half of the
channels with the weights; and the tile after the next is on its way as soon as a tile has been read.
"""

import torch

from .ops_dispatch import HALF_DTYPES

try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper
except ImportError:
    gluon = None

if gluon is not None:
    # Triton 3.9 has another name for it.
    copy_async = getattr(hopper.async_copy, "async_load", None) or hopper.async_copy.async_copy_global_to_shared

    @gluon.jit
    def _copy_rows(tile, base, rows, stride, LAYOUT: gl.constexpr):
        """Rows of a matrix, set on their way to shared memory."""
        channel = gl.arange(0, tile.shape[1], layout=gl.SliceLayout(0, LAYOUT))
        copy_async(tile, base + (rows * stride)[:, None] + channel[None, :])

    @gluon.jit
    def _key_rows(positions, start, stop, KEYS: gl.constexpr, GATHERED: gl.constexpr, LAYOUT: gl.constexpr):
        """The rows of a tile of keys; the last one again in place of those behind it, which may hold no numbers."""
        at = gl.minimum(start + gl.arange(0, KEYS, layout=gl.SliceLayout(1, LAYOUT)), stop - 1)
        if GATHERED:
            at = gl.load(positions + at)
        return at.to(gl.int64)

    @gluon.jit
    def _copy_keys(
        wide, narrow, key, positions, start, stop, stride, GATHERED: gl.constexpr, WIDE: gl.constexpr,
        NARROW: gl.constexpr,
    ):  # fmt: skip
        """A tile of keys, its two parts set on their way as one group; an empty group behind the last tile."""
        if start < stop:
            rows = _key_rows(positions, start, stop, wide.shape[0], GATHERED, WIDE)
            _copy_rows(wide, key, rows, stride, WIDE)
            rows = _key_rows(positions, start, stop, wide.shape[0], GATHERED, NARROW)
            _copy_rows(narrow, key + wide.shape[1], rows, stride, NARROW)
        hopper.async_copy.commit_group()

    @gluon.jit
    def _copy_queries(wide, narrow, query, row, groups, stride, WIDE: gl.constexpr, NARROW: gl.constexpr):
        """The queries of this program, the last one again in place of those that are not there."""
        rows = gl.minimum(row + gl.arange(0, wide.shape[0], layout=gl.SliceLayout(1, WIDE)), groups - 1)
        _copy_rows(wide, query, rows, stride, WIDE)
        rows = gl.minimum(row + gl.arange(0, wide.shape[0], layout=gl.SliceLayout(1, NARROW)), groups - 1)
        _copy_rows(narrow, query + wide.shape[1], rows, stride, NARROW)

    @gluon.jit
    def _add_products(scores, q_wide, q_narrow, k_wide, k_narrow):
        """scores + q kᵀ of a tile."""
        scores = hopper.warpgroup_mma(q_wide, k_wide.permute((1, 0)), scores, is_async=True)
        scores = hopper.warpgroup_mma(q_narrow, k_narrow.permute((1, 0)), scores, is_async=True)
        return hopper.warpgroup_mma_wait(0, deps=[scores])

    @gluon.jit
    def _store_latents(mixed, logs, splits, groups, row, peak, mass, mix, SCORES: gl.constexpr, MIX: gl.constexpr):
        """The mean value of one split of the keys and the log of its mass, for each query."""
        place = (gl.program_id(2).to(gl.int64) * splits + gl.program_id(1)) * groups + row
        at = gl.arange(0, mix.shape[0], layout=gl.SliceLayout(1, SCORES))
        gl.store(logs + place + at, peak + gl.log2(mass), mask=row + at < groups)
        share = gl.convert_layout(1.0 / gl.where(mass > 0, mass, 1.0), gl.SliceLayout(1, MIX))
        at = gl.arange(0, mix.shape[0], layout=gl.SliceLayout(1, MIX))
        channel = gl.arange(0, mix.shape[1], layout=gl.SliceLayout(0, MIX))
        to = mixed + ((place + at) * mix.shape[1])[:, None] + channel[None, :]
        gl.store(to, (mix * share[:, None]).to(mixed.dtype.element_ty), mask=(row + at < groups)[:, None])

    @gluon.jit
    def _latent_range(bounds, count, splits, KEYS: gl.constexpr, MASKED: gl.constexpr):
        """The keys of this program, as `_split_range` of the other kernel."""
        start, stop = 0, count
        if MASKED:
            start, stop = gl.load(bounds + 3 * gl.program_id(2)), gl.load(bounds + 3 * gl.program_id(2) + 1)
        tiles = gl.cdiv(stop - start, KEYS)
        before, behind = tiles * gl.program_id(1) // splits, tiles * (gl.program_id(1) + 1) // splits
        return start + before * KEYS, gl.minimum(start + behind * KEYS, stop)

    @gluon.jit
    def _seen_keys(
        visible, bounds, tile, start, stop, KEYS: gl.constexpr, MASKED: gl.constexpr, LAYOUT: gl.constexpr
    ):  # fmt: skip
        """Which keys of a tile are visible; asked one by one only where some between the first and the last are not."""
        column = tile + gl.arange(0, KEYS, layout=gl.SliceLayout(0, LAYOUT))
        seen = column < stop
        if MASKED:
            asked = start + (stop - start) * gl.load(bounds + 3 * gl.program_id(2) + 2)
            seen = seen & (gl.load(visible + column, mask=column < asked, other=1) != 0)
        return seen

    @gluon.jit(do_not_specialize=["count", "splits", "p_batch", "m_batch"])
    def _read_latents(
        query, key, positions, visible, bounds, mixed, logs, scale, groups, count, splits, q_batch, q_row, k_batch,
        k_token, p_batch, m_batch, FIRST: gl.constexpr, REST: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
        GATHERED: gl.constexpr, MASKED: gl.constexpr,
    ):  # fmt: skip
        """A running softmax of ROWS queries over one split of the keys of FIRST + REST channels."""
        DTYPE: gl.constexpr = key.dtype.element_ty
        SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, KEYS // 2, 16])
        MIX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, FIRST // 2, 16])
        WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // min(FIRST, 256), min(FIRST, 256) // 8], [8, 1], [1, 0])
        NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [256 // REST, REST // 8], [8, 1], [1, 0])
        wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, FIRST], DTYPE)
        narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, REST], DTYPE)
        square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, KEYS], DTYPE)
        q_wide = gl.allocate_shared_memory(DTYPE, [ROWS, FIRST], wide)
        q_narrow = gl.allocate_shared_memory(DTYPE, [ROWS, REST], narrow)
        k_wide = gl.allocate_shared_memory(DTYPE, [2, KEYS, FIRST], wide)
        k_narrow = gl.allocate_shared_memory(DTYPE, [2, KEYS, REST], narrow)
        shares = gl.allocate_shared_memory(DTYPE, [ROWS, KEYS], square)

        batch, row = gl.program_id(2).to(gl.int64), gl.program_id(0) * ROWS
        key, positions, visible = key + batch * k_batch, positions + batch * p_batch, visible + batch * m_batch
        start, stop = _latent_range(bounds, count, splits, KEYS, MASKED)
        _copy_queries(q_wide, q_narrow, query + batch * q_batch, row, groups, q_row, WIDE, NARROW)
        for ahead in gl.static_range(2):
            k, k_rest = k_wide.index(ahead), k_narrow.index(ahead)
            _copy_keys(k, k_rest, key, positions, start + ahead * KEYS, stop, k_token, GATHERED, WIDE, NARROW)
        peak = gl.full([ROWS], -1e30, gl.float32, layout=gl.SliceLayout(1, SCORES))
        mass = gl.zeros([ROWS, KEYS], gl.float32, layout=SCORES)
        mix = gl.zeros([ROWS, FIRST], gl.float32, layout=MIX)
        slot = 0
        for tile in range(start, stop, KEYS):
            hopper.async_copy.wait_group(1)
            hopper.fence_async_shared()
            k, k_rest = k_wide.index(slot), k_narrow.index(slot)
            seen = _seen_keys(visible, bounds, tile, start, stop, KEYS, MASKED, SCORES)
            scores = gl.zeros([ROWS, KEYS], gl.float32, layout=SCORES)
            scores = _add_products(scores, q_wide, q_narrow, k, k_rest)
            scores = gl.where(seen[None, :], scores * scale, float("-inf"))
            higher = gl.maximum(peak, gl.max(scores, axis=1))
            weights, fade = gl.exp2(scores - higher[:, None]), gl.exp2(peak - higher)
            shares.store(weights.to(DTYPE))
            hopper.fence_async_shared()
            mass, peak = mass * fade[:, None] + weights, higher
            mix = mix * gl.convert_layout(fade, gl.SliceLayout(1, MIX))[:, None]
            mix = hopper.warpgroup_mma(shares, k, mix, is_async=True)
            mix = hopper.warpgroup_mma_wait(0, deps=[mix])
            _copy_keys(k, k_rest, key, positions, tile + 2 * KEYS, stop, k_token, GATHERED, WIDE, NARROW)
            slot = 1 - slot
        hopper.async_copy.wait_group(0)
        _store_latents(mixed, logs, splits, groups, row, peak, gl.sum(mass, axis=1), mix, SCORES, MIX)


class HopperKernel:
    """When the kernel is the one to take, and its launch."""

    # Query heads and keys of a tile.
    tile = {"ROWS": 64, "KEYS": 64, "num_warps": 8}
    function = None if gluon is None else _read_latents

    @staticmethod
    def suits(query: torch.Tensor, key: torch.Tensor, value_width: int) -> bool:
        """Whether the kernel takes queries `[B, 1, G, d]` of keys `[B, 1, S, d]`, values in their first `value_width`
        channels."""
        rest = query.shape[-1] - value_width
        powers = value_width in (128, 256, 512) and rest in (16, 32, 64) and query.shape[1] == 1
        if gluon is None or not powers or query.dtype not in HALF_DTYPES or query.device.type != "cuda":
            return False
        strides = (*query.stride()[::2], *key.stride()[::2])
        aligned = not any(stride % 16 for stride in strides) and not (query.data_ptr() | key.data_ptr()) % 16
        return aligned and torch.cuda.get_device_properties(query.device).major == 9

    @classmethod
    def run(
        cls, grid: tuple, query: torch.Tensor, key: torch.Tensor, tables: tuple, ends: tuple, widths: dict, flags: dict
    ) -> None:
        """Over a `grid` of blocks of query heads, splits of the keys and sequences."""
        strides = query.stride(0), query.stride(2), key.stride(0), key.stride(2)
        widths = {name: widths[name] for name in ("FIRST", "REST")}
        cls.function[grid](query, key, *tables, *strides, *ends, **widths, **cls.tile, **flags)
