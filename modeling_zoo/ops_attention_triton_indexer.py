"""Scores of an indexer by one kernel in Triton: its products with all heads are summed before they reach memory."""

from functools import partial

import torch

from .ops_dispatch import HALF_DTYPES, is_recent_cuda
from .ops_triton import multiprocessors, power_of_two, register_operation, tl, triton

# Rows of queries and keys of a tile; channels up to which it fits the shared memory of every device.
INDEX_ROWS, INDEX_KEYS, MOST_CHANNELS = 128, 64, 128
INDEX_SCHEMA = "(Tensor query, Tensor key, Tensor weights) -> Tensor"


if triton is not None:

    @triton.jit(do_not_specialize=["length", "count", "per_program"])
    def _score_keys(
        query, key, weights, scores, length, count, per_program, heads, q_batch, q_token, q_head, k_batch, k_token,
        w_batch, w_token, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr,
        KEYS: tl.constexpr,
    ):  # fmt: skip
        """Σ_h w_h · relu(q_h · k) of QUERIES queries and `per_program` keys, which are the rows of the products."""
        batch, channel = tl.program_id(2).to(tl.int64), tl.arange(0, CHANNELS)
        row = tl.arange(0, QUERIES * HEADS)
        token, head = tl.program_id(0) * QUERIES + row // HEADS, row % HEADS
        there = (token < length) & (head < heads)
        q_rows = query + batch * q_batch + token.to(tl.int64) * q_token + head * q_head
        q_mask = there[:, None] & (channel < WIDTH)[None, :]
        q = tl.trans(tl.load(q_rows[:, None] + channel[None, :], mask=q_mask, other=0.0))
        weight = tl.load(weights + batch * w_batch + token.to(tl.int64) * w_token + head, mask=there, other=0.0)
        first, at = tl.program_id(1) * per_program, tl.arange(0, KEYS)
        answered = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
        to = scores + (batch * length + answered) * count
        for start in range(first, tl.minimum(first + per_program, count), KEYS):
            k_rows = key + batch * k_batch + tl.minimum(start + at, count - 1).to(tl.int64) * k_token
            k = tl.load(k_rows[:, None] + channel[None, :], mask=(channel < WIDTH)[None, :], other=0.0)
            products = tl.maximum(tl.dot(k, q, input_precision="ieee"), 0.0) * weight[None, :]
            summed = tl.sum(tl.reshape(products, [KEYS, QUERIES, HEADS]), axis=2)
            kept = (start + at < count)[:, None] & (answered < length)[None, :]
            tl.store(to[None, :] + (start + at)[:, None], summed, mask=kept)

    @triton.jit(do_not_specialize=["count"])
    def _rank_scores(scores, ranks, count, BLOCK: tl.constexpr):
        """The bits of a score in the order of its value, then the distance of its position from the end."""
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        row = tl.program_id(1).to(tl.int64) * count
        # Adding zero makes one of the two zeros.
        bits = (tl.load(scores + row + at, mask=at < count, other=0.0) + 0.0).to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        tl.store(ranks + row + at, (ordered << 32) + (count - 1 - at), mask=at < count)


def scores_by_kernel(query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`[B, T, h, d]`, `[B, S, d]`, float32 weights `[B, T, h]` → `[B, T, S]`, summed and returned in float32."""
    query, key, weights = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, weights))
    (batch, length, heads, width), count = query.shape, key.shape[1]
    scores = torch.empty(batch, length, count, dtype=torch.float32, device=query.device)
    padded = max(16, power_of_two(heads))
    queries, tiles = min(max(1, INDEX_ROWS // padded), power_of_two(length)), -(-count // INDEX_KEYS)
    blocks = -(-length // queries)
    # A few programs for each multiprocessor, so that they end together.
    per_program = max(1, tiles * blocks * batch // (4 * multiprocessors(query.device))) * INDEX_KEYS
    grid, sizes = (blocks, -(-count // per_program), batch), (length, count, per_program, heads)
    strides = *query.stride()[:3], *key.stride()[:2], *weights.stride()[:2]
    tile = {"CHANNELS": max(16, power_of_two(width)), "HEADS": padded, "QUERIES": queries, "KEYS": INDEX_KEYS}
    warps = 8 if queries * padded > 64 else 4
    _score_keys[grid](query, key, weights, scores, *sizes, *strides, WIDTH=width, **tile, num_warps=warps)
    return scores


def empty_scores(query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What `scores_by_kernel` returns, without the numbers."""
    return query.new_empty(*query.shape[:2], key.shape[1], dtype=torch.float32)


INDEXER = register_operation(__name__, "index_scores", INDEX_SCHEMA, scores_by_kernel, empty_scores)


def ranks_by_kernel(scores: torch.Tensor) -> torch.Tensor:
    """Float32 scores `[..., S]` → integers in the order of score, then of position from the end, `[..., S]`."""
    scores, count = scores.contiguous(), scores.shape[-1]
    ranks = torch.empty_like(scores, dtype=torch.int64)
    _rank_scores[-(-count // 1024), scores.numel() // count](scores, ranks, count, BLOCK=1024)
    return ranks


RANKER = register_operation(
    __name__, "rank_scores", "(Tensor scores) -> Tensor", ranks_by_kernel, partial(torch.empty_like, dtype=torch.int64)
)


def use_rank_kernel(scores: torch.Tensor) -> bool:
    """Whether float32 scores are ranked by the kernel."""
    return RANKER is not None and scores.dtype == torch.float32 and is_recent_cuda(scores.device)


def use_index_kernel(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether scores of queries `[B, T, h, d]` go to the kernel: in inference, on a device and in a size it is for."""
    able = INDEXER is not None and query.dtype == key.dtype in HALF_DTYPES and not torch.is_grad_enabled()
    fits = query.shape[-1] <= MOST_CHANNELS and query.shape[2] <= INDEX_ROWS
    return able and fits and is_recent_cuda(query.device)
