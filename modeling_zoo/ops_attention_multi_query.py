"""Multi-query attention over a cached latent: all heads read one key, whose first channels are the value as well.

The plain form comes first, then what chooses a form, then the faster ones, each with the numbers of the plain one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .ops_attention_triton import decode_mask, split_decode, use_triton
from .ops_dispatch import has_wide_products, use_fp32_gemm

# Scores that the plain form holds at once; keys up to which torch's own kernel is the fastest on a CPU; keys per pass
# of the streamed form, so that their float32 copy stays in a core's cache.
MOST_SCORES = 2**26
MOST_SDPA_KEYS = 1024
STREAM_KEYS = 512

# -- the plain form ----------------------------------------------------------------------------------------------------


def plain_multi_query(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    rank: int,
    scaling: float,
    sinks: torch.Tensor | None = None,
    upcast: bool = False,
    wide: bool = False,
    **shape: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(cap(Σ q kᵀ · scaling) + bias + mask) l → (`[B, H, T, c]`, weights `[B, H, T, S]`).

    Queries `[B, H, T, d]` and keys `[B, S, d]` come in one part or in two that lie side by side; the value l is the
    first `rank` channels of the first key. Heads and queries are the rows of one product, so no key is repeated.
    `sinks` `[H]` and `shape` (mask, position_bias, softcap) as in `eager_attention_forward`, a mask of booleans too.
    `wide` keeps the float32 sums that are the scores, where the device can give them (`has_wide_products`).
    """
    batch, heads, length, _ = queries[0].shape
    dtype, value = queries[0].dtype, keys[0].narrow(-1, 0, rank)
    scores = None
    for query, key in zip(queries, keys, strict=True):
        rows, columns = query.reshape(batch, heads * length, -1), key.transpose(1, 2)
        if upcast:
            rows, columns = rows.float(), columns.float()
        if wide:
            products = torch.bmm(rows, columns, out_dtype=torch.float32)
            scores = products if scores is None else scores + products
        else:
            scores = torch.bmm(rows, columns) if scores is None else torch.baddbmm(scores, rows, columns)
    scores = shape_scores(scores.view(batch, heads, length, -1) * scaling, **shape)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(batch, -1, length, 1)
        scores = torch.cat((scores, column.to(scores.dtype)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    weights = weights if sinks is None else weights[..., :-1]
    context = torch.bmm(weights.reshape(batch, heads * length, -1), value)
    return context.view(batch, heads, length, rank), weights


def shape_scores(
    scores: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """cap(scores) + bias + mask, `[B, H, T, S]`; where a boolean mask is False, the least number."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


# -- which form --------------------------------------------------------------------------------------------------------


def multi_query_attention(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    rank: int,
    scaling: float,
    upcast: bool = False,
    want_weights: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`plain_multi_query` by the form that suits the device → (`[B, H, T, c]`, weights or None)."""
    if want_weights:
        return plain_multi_query(queries, keys, rank, scaling, upcast=upcast, **options)
    if queries[0].shape[2] == 1 and not upcast and is_softmax_alone(**options):
        mask = options.get("mask")
        if len(keys) == 1 and use_triton(keys[0]) and decode_mask(mask)[1]:
            return triton_multi_query(queries[0], keys[0], rank, scaling, mask), None
        if queries[0].device.type == "cpu" and keys[0].shape[1] <= MOST_SDPA_KEYS:
            return sdpa_multi_query(queries, keys, rank, scaling, mask), None
    if use_fp32_gemm(keys[0]):
        return streamed_multi_query(queries, keys, rank, scaling, **options), None
    wide = has_wide_products(keys[0]) and not upcast
    return in_query_blocks(queries, keys, rank, scaling, upcast=upcast, wide=wide, **options), None


def is_softmax_alone(
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
) -> bool:
    """Whether nothing is asked of the scores that torch's kernel does not compute."""
    return sinks is None and softcap is None and position_bias is None


# -- faster forms ------------------------------------------------------------------------------------------------------


def triton_multi_query(
    query: torch.Tensor, key: torch.Tensor, rank: int, scaling: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """One query per head `[B, H, 1, d]` over `[B, S, d]` by the kernels for a decoded token → `[B, H, 1, c]`."""
    visible, _ = decode_mask(mask)
    rows = query.transpose(1, 2)
    return split_decode(rows, key.unsqueeze(1), None, rank, scaling, visible=visible).transpose(1, 2)


def sdpa_multi_query(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    rank: int,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """One query per head by torch's kernel → `[B, H, 1, c]`: heads are the queries, the whole key is its value.

    The kernel wants values as wide as keys; what the rope part adds is cut off.
    """
    query, key = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in (queries, keys))
    key = key.unsqueeze(1)
    context = F.scaled_dot_product_attention(query.transpose(1, 2), key, key, attn_mask=mask, scale=scaling)
    return context[..., :rank].transpose(1, 2)


def in_query_blocks(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    rank: int,
    scaling: float,
    upcast: bool = False,
    wide: bool = False,
    **options: Any,
) -> torch.Tensor:
    """The plain form, of so many queries at once as memory bounds → `[B, H, T, c]`."""
    batch, heads, length, _ = queries[0].shape
    step = max(1, MOST_SCORES // (batch * heads * keys[0].shape[1]))
    if step >= length:
        return plain_multi_query(queries, keys, rank, scaling, upcast=upcast, wide=wide, **options)[0]
    contexts = []
    for start in range(0, length, step):
        block = slice(start, start + step)
        here = dict(options)
        for name in ("mask", "position_bias"):
            part = options.get(name)
            if part is not None and part.shape[-2] == length:
                here[name] = part[..., block, :]
        parts = [query[:, :, block] for query in queries]
        contexts.append(plain_multi_query(parts, keys, rank, scaling, upcast=upcast, wide=wide, **here)[0])
    return torch.cat(contexts, dim=2)


def streamed_multi_query(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    rank: int,
    scaling: float,
    sinks: torch.Tensor | None = None,
    **shape: Any,
) -> torch.Tensor:
    """The plain form in one pass over the keys with a running maximum, in float32 → `[B, H, T, c]`.

    (Online softmax: Milakov & Gimelshein 2018, arXiv 1805.02867.) The chunk that is converted to float32 serves as key
    and as value.
    """
    batch, heads, length, _ = queries[0].shape
    dtype, total = queries[0].dtype, keys[0].shape[1]
    rows = torch.cat(queries, dim=-1).float().flatten(1, 2) * scaling
    buffer = rows.new_empty(batch, min(STREAM_KEYS, total), rows.shape[-1])
    highest, mass, context = _before_the_first_key(rows, heads, length, rank, sinks)
    for start in range(0, total, STREAM_KEYS):
        chunk = buffer[:, : min(STREAM_KEYS, total - start)]
        for part, key in zip(chunk.split([key.shape[-1] for key in keys], dim=-1), keys, strict=True):
            part.copy_(key[:, start : start + STREAM_KEYS])
        here = {name: _columns(part, start, chunk.shape[1], total) for name, part in shape.items()}
        scores = torch.bmm(rows, chunk.transpose(1, 2)).view(batch, heads, length, -1)
        scores = shape_scores(scores, **here).flatten(1, 2)
        peak = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
        weights = scores.sub_(peak).exp_()
        fade = highest.sub_(peak).exp_()
        mass = mass.mul_(fade).add_(weights.sum(dim=-1, keepdim=True))
        context = context.mul_(fade).baddbmm_(weights, chunk[..., :rank])
        highest = peak
    return (context / mass).to(dtype).view(batch, heads, length, rank)


def _before_the_first_key(rows, heads, length, rank, sinks):
    """Running maximum, mass and context `[B, H · T, ...]` at the start: nothing, or the sinks' own logits."""
    shape = (*rows.shape[:2], 1)
    if sinks is None:
        highest, mass = rows.new_full(shape, torch.finfo(rows.dtype).min), rows.new_zeros(shape)
    else:
        highest = sinks.float().view(1, heads, 1, 1).expand(rows.shape[0], -1, length, -1).reshape(shape).clone()
        mass = rows.new_ones(shape)
    return highest, mass, rows.new_zeros(*rows.shape[:2], rank)


def _columns(part, start, count, total):
    """The columns of a chunk of what is added to the scores, `[..., S]`; anything else unchanged."""
    per_key = isinstance(part, torch.Tensor) and part.shape[-1] == total
    return part[..., start : start + count] if per_key else part


class MultiQueryLayer:
    """A layer for a backend, which asks it how many heads share a key: all of them. All else is the layer's own.

    A shallow copy of the module would say the same, but could not be compiled into one graph.
    """

    def __init__(self, module: nn.Module, heads: int):
        self.module, self.num_key_value_groups = module, heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
