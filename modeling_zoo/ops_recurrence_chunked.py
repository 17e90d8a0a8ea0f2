"""Chunked forms of the matrix-state recurrences: a few batched products per chunk instead of one update per token.

Inside this file a sequence is laid out chunk-major, `[N, B·H, C, D]`: chunk number, row and head, place in the chunk.
Vectors that read the state together are interleaved as `R` rows per token, `[N, B·H, C, R, K]`, because one product
with the state then serves all of them. Everything here is differentiable; nothing needs a particular device.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

# Smaller factors add nothing to a float32 sum whose terms are near 1, but the products of two of them are subnormal
# numbers, which a CPU multiplies many times slower.
SMALLEST = 1e-18
LOG_SMALLEST = math.log(SMALLEST)


def to_chunks(states: torch.Tensor, chunk_size: int, dtype: torch.dtype) -> torch.Tensor:
    """`[B, L, H, ...]` -> `[N, B·H, C, ...]`, the last chunk filled up with zeros."""
    padding = -states.shape[1] % chunk_size
    if padding:
        states = F.pad(states, (0, 0) * (states.dim() - 2) + (0, padding))
    batch, length, heads, *rest = states.shape
    chunks = states.reshape(batch, length // chunk_size, chunk_size, heads, *rest).to(dtype)
    return chunks.movedim(1, 0).transpose(2, 3).reshape(length // chunk_size, batch * heads, chunk_size, *rest)


def from_chunks(chunks: list[torch.Tensor], batch: int, length: int) -> torch.Tensor:
    """N tensors `[B·H, C, D]` -> `[B, L, H, D]`."""
    rows = [chunk.unflatten(0, (batch, -1)).transpose(1, 2) for chunk in chunks]
    return torch.cat(rows, dim=1)[:, :length]


def by_chunk(*states: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tuples of one chunk of each, one after the other.

    Unbound at once: the gradient of an index is as large as all chunks together, and would be made for each of them.
    """
    return zip(*(chunks.unbind() for chunks in states), strict=True)


def _decay(log_decay: torch.Tensor) -> torch.Tensor:
    return F.threshold(log_decay, LOG_SMALLEST, -torch.inf).exp()


def segment_sums(log_decay: torch.Tensor) -> torch.Tensor:
    """`[..., C]` -> `[..., C, C]`: the sum of g over j < t <= i at (i, j), -inf above the diagonal.

    Each sum is taken on its own: a difference of two sums since the start would keep only the digits of the larger.
    """
    size = log_decay.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu()
    sums = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).masked_fill(later, 0.0).cumsum(-2)
    return sums.masked_fill(later.triu(1), -torch.inf)


def head_decayed_scores(rows: torch.Tensor, key: torch.Tensor, log_decay: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One decay per head and token: rows `[N, H', C, R, K]`, key `[N, H', C, K]`, log_decay `[N, H, C]`.

    Returns scores `[N, H, C, R, C]` (row_i · key_j · e**(G_i - G_j), 0 for j > i), the rows decayed since the start of
    the chunk, the keys decayed until its end, and the decay of the whole chunk `[N, H, 1, 1]`. Consecutive heads may
    share rows and keys (H a multiple of H'): their products are computed once.
    """
    group = log_decay.shape[1] // key.shape[1]
    scores = (rows.flatten(2, 3) @ key.transpose(-1, -2)).view(*rows.shape[:-1], key.shape[2])
    if group > 1:
        scores, rows, key = (states.repeat_interleave(group, dim=1) for states in (scores, rows, key))
    between = _decay(segment_sums(log_decay))
    start = _decay(log_decay.cumsum(-1))
    rest = between[..., -1, :, None]
    return scores * between.unsqueeze(3), rows * start[..., None, None], key * rest, start[..., -1, None, None]


def _scale_half(states: torch.Tensor, half: int, factor: torch.Tensor) -> torch.Tensor:
    # Pairs of neighbouring blocks [..., 2, S, K]: one block of each pair times its factor [..., 1, K].
    if torch.is_grad_enabled():
        blocks = list(states.unbind(-3))
        blocks[half] = F.hardshrink(blocks[half] * factor, SMALLEST)
        return torch.stack(blocks, dim=-3)
    block = states.select(-3, half)
    block.copy_(F.hardshrink(block.mul_(factor), SMALLEST))
    return states


def channel_decayed_scores(rows: torch.Tensor, key: torch.Tensor, log_decay: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One decay per channel: as `head_decayed_scores`, with log_decay `[N, H, C, K]` and chunk decay `[N, H, K, 1]`.

    Blocks double from one token to the chunk: the rows of a second half meet the keys of its first half, both decayed
    to the border between them, so that every factor is a decay and none can overflow. C must be a power of two.
    """
    lead, (size, count, width) = rows.shape[:2], rows.shape[2:]
    scores = rows.new_zeros(*lead, size, count, size)
    scores.diagonal(dim1=2, dim2=4).copy_((rows * key.unsqueeze(3)).sum(-1).transpose(-1, -2))
    rows, key, total = rows * log_decay.exp().unsqueeze(3), key.clone(), log_decay
    block = 1
    while block < size:
        pairs = size // (2 * block)
        reading = rows.view(*lead, pairs, 2, block * count, width)
        written = key.view(*lead, pairs, 2, block, width)
        met = reading[..., 1, :, :] @ written[..., 0, :, :].transpose(-1, -2)
        target = scores.view(*lead, pairs, 2, block * count, pairs, 2, block)[..., 1, :, :, 0, :]
        target.diagonal(dim1=2, dim2=4).copy_(met.movedim(2, -1))
        first, second = total.view(*lead, pairs, 2, 1, width).unbind(-3)
        rows = _scale_half(reading, 1, first.exp()).view(*lead, size, count, width)
        key = _scale_half(written, 0, second.exp()).view(*lead, size, width)
        # Sums of logarithms: products of many factors near 1 would add up their roundings.
        total = first + second
        block *= 2
    return scores, rows, key, _decay(total).reshape(*lead, width, 1)


def decayed_scores(rows: torch.Tensor, key: torch.Tensor, log_decay: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Either of the two above, by the number of dimensions of log_decay."""
    if log_decay.dim() == 3:
        return head_decayed_scores(rows, key, log_decay)
    group = log_decay.shape[1] // key.shape[1]
    if group > 1:
        rows, key = rows.repeat_interleave(group, dim=1), key.repeat_interleave(group, dim=1)
    return channel_decayed_scores(rows, key, log_decay)


def delta_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """S <- Diag(e**g) S + β k (v - Sᵀk)ᵀ, o = Sᵀq over N chunks; state `[B·H, K, V]`; returns N outputs `[B·H, C, V]`.

    The UT transform (Yang et al. 2024, "Parallelizing linear transformers with the delta rule", §3): the writes of a
    chunk solve a unit triangular system. It is inverted once for all chunks, against Diag(β) of width C instead of the
    wider right-hand sides.
    """
    size = key.shape[2]
    scores, rows, key, total = decayed_scores(torch.stack([query, key], dim=3), key, log_decay)
    attention, overlap = F.hardshrink(scores, SMALLEST).unbind(3)
    system = overlap * beta.unsqueeze(-1)
    solution = torch.linalg.solve_triangular(system, torch.diag_embed(beta), upper=False, unitriangular=True)
    solution = F.hardshrink(solution, SMALLEST)
    mixing = torch.stack([attention @ solution, solution], dim=3).flatten(2, 3)
    rows, key = rows.flatten(2, 3), key.transpose(-1, -2)
    outputs = []
    for row, mix, given, kept, place in by_chunk(rows, mixing, value, total, key):
        read, predicted = torch.bmm(row, state).unflatten(1, (size, 2)).unbind(2)
        mixed, write = torch.bmm(mix, given - predicted).unflatten(1, (size, 2)).unbind(2)
        outputs.append(read + mixed)
        state = (state * kept).baddbmm_(place, write)
    return outputs, state


def additive_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    log_decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """S <- Diag(e**g) S + β k vᵀ, o = Sᵀq over N chunks (the state space duality of Dao and Gu 2024, §6)."""
    scores, rows, key, total = decayed_scores(query.unsqueeze(3), key, log_decay)
    rows, scores = rows.flatten(2, 3), scores.flatten(2, 3)
    if beta is not None:
        scores, key = scores * beta.unsqueeze(-2), key * beta.unsqueeze(-1)
    inside = scores @ value
    key = key.transpose(-1, -2)
    outputs = []
    for own, row, given, kept, place in by_chunk(inside, rows, value, total, key):
        outputs.append(torch.baddbmm(own, row, state))
        state = (state * kept).baddbmm_(place, given)
    return outputs, state
