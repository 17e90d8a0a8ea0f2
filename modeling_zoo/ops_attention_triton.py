"""One decoded token in Triton: queries that share a key read the cache once, split over it (Flash-Decoding, Dao 2023).

Latent attention in absorbed form is one key head whose value is the key's first columns, sparse attention the same over
chosen rows, sliding attention a few key heads over a window: one kernel for all three. It is optional: without triton,
or unless the environment asks for it with ZOO_TRITON=1, plain torch computes the same (`gqa_decode`,
`plain_multi_query`, `read_gathered`).
"""

import os

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# Query heads and keys per pass, channels per product.
ROWS, COLUMNS, CHANNELS = 16, 32, 64
# Programs that keep a device busy; splits beyond them only cost their reunion.
PROGRAMS = 256


if triton is not None:

    @triton.jit
    def _read_split(
        query, key, value, positions, visible, mixed, peaks, masses, scale, groups, kv_heads, count, per_split, splits,
        q_batch, q_head, q_row, k_batch, k_head, k_token, v_batch, v_head, v_token, p_batch, m_batch,
        WIDTH: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        CHANNELS: tl.constexpr, GATHERED: tl.constexpr, MASKED: tl.constexpr,
    ):  # fmt: skip
        """A running softmax of ROWS queries over one split of the keys: what it mixed, its peak and its mass."""
        batch, head, split = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads, tl.program_id(1)
        row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        wide = tl.arange(0, VALUES)
        peak = tl.full([ROWS], -1e30, tl.float32)
        mass = tl.zeros([ROWS], tl.float32)
        mix = tl.zeros([ROWS, VALUES], tl.float32)
        last = tl.minimum(split * per_split + per_split, count)
        for start in range(split * per_split, last, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < last
            at = column.to(tl.int64)
            if GATHERED:
                at = tl.load(positions + batch * p_batch + column, mask=inside, other=0).to(tl.int64)
            scores = tl.zeros([ROWS, COLUMNS], tl.float32)
            for offset in range(0, WIDTH, CHANNELS):
                channel = offset + tl.arange(0, CHANNELS)
                q_at = query + batch * q_batch + head * q_head + row[:, None] * q_row + channel[None, :]
                q = tl.load(q_at, mask=(row[:, None] < groups) & (channel[None, :] < WIDTH), other=0.0)
                k_at = key + batch * k_batch + head * k_head + at[None, :] * k_token + channel[:, None]
                k = tl.load(k_at, mask=inside[None, :] & (channel[:, None] < WIDTH), other=0.0)
                scores += tl.dot(q, k, input_precision="ieee")
            scores = scores * scale
            if MASKED:
                seen = tl.load(visible + batch * m_batch + column, mask=inside, other=0)
                scores = tl.where(seen[None, :] != 0, scores, -1e30)
            scores = tl.where(inside[None, :], scores, -1e30)
            higher = tl.maximum(peak, tl.max(scores, axis=1))
            weights = tl.where(inside[None, :], tl.exp(scores - higher[:, None]), 0.0)
            fade = tl.exp(peak - higher)
            v_at = value + batch * v_batch + head * v_head + at[:, None] * v_token + wide[None, :]
            v = tl.load(v_at, mask=inside[:, None] & (wide[None, :] < VALUE), other=0.0)
            mass = mass * fade + tl.sum(weights, axis=1)
            mix = mix * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            peak = higher
        place = (tl.program_id(0) * splits + split) * groups + row
        tl.store(peaks + place, peak, mask=row < groups)
        tl.store(masses + place, mass, mask=row < groups)
        kept = (row[:, None] < groups) & (wide[None, :] < VALUE)
        tl.store(mixed + place[:, None] * VALUE + wide[None, :], mix, mask=kept)


def use_triton(states: torch.Tensor) -> bool:
    """Whether decoding over `states` is to use the kernel: asked for, there, and on a device it is written for."""
    able = triton is not None and states.device.type == "cuda" and not torch.is_grad_enabled()
    return able and os.environ.get("ZOO_TRITON") == "1"


def decode_mask(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, bool]:
    """The booleans `[B, S]` of a mask `[B, 1, 1, S]` or None, and whether that is what it is."""
    if mask is None:
        return None, True
    fits = mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1
    return (mask[:, 0, 0], True) if fits else (None, False)


def split_decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    positions: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
    splits: int | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ · scaling) v of one token, `[B, K, G, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, K, G, v]`.

    The last axis of each lies together in memory. `positions` `[B, k]` reads those keys alone; `visible`, booleans
    `[B, S]` or `[B, k]`, hides some of what is read. Where all is hidden the result is a mean.
    """
    batch, kv_heads, groups, width = query.shape
    count = key.shape[2] if positions is None else positions.shape[1]
    blocks = triton.cdiv(groups, ROWS)
    splits = splits or max(1, min(triton.cdiv(count, COLUMNS), PROGRAMS // (batch * kv_heads * blocks)))
    per_split = triton.cdiv(triton.cdiv(count, splits), COLUMNS) * COLUMNS
    splits = triton.cdiv(count, per_split)
    place = (batch * kv_heads, splits, groups)
    mixed = query.new_empty(*place, value.shape[-1], dtype=torch.float32)
    peaks, masses = (query.new_empty(*place, dtype=torch.float32) for _ in range(2))
    chosen = query if positions is None else positions.contiguous()
    seen = query if visible is None else visible.to(torch.uint8).contiguous()
    strides = [stride for part in (query, key, value) for stride in part.stride()[:3]]
    _read_split[(batch * kv_heads, splits, blocks)](
        query, key, value, chosen, seen, mixed, peaks, masses, scaling, groups, kv_heads, count, per_split, splits,
        *strides, 0 if positions is None else chosen.stride(0), 0 if visible is None else seen.stride(0),
        WIDTH=width, VALUE=value.shape[-1], VALUES=max(16, triton.next_power_of_2(value.shape[-1])), ROWS=ROWS,
        COLUMNS=COLUMNS, CHANNELS=CHANNELS, GATHERED=positions is not None, MASKED=visible is not None,
    )  # fmt: skip
    share = torch.exp(peaks - peaks.amax(dim=1, keepdim=True))
    mixed = (mixed * share.unsqueeze(-1)).sum(dim=1) / (masses * share).sum(dim=1).unsqueeze(-1)
    return mixed.view(batch, kv_heads, groups, -1).to(query.dtype)
