"""Which keys a query reads in sparse attention: scores of all keys, and the positions of the best."""

from collections.abc import Callable

import torch

from .ops_attention_bands import AttentionMask, mask_rows, num_visible_keys
from .ops_attention_triton_indexer import INDEXER, RANKER, use_index_kernel, use_rank_kernel
from .ops_dispatch import has_wide_products

# Queries scored together: what is held at once grows with the keys, not with their square.
QUERY_BLOCK, QUERY_BLOCK_ON_DEVICE = 128, 256
# Keys scored at once, at most, and products held at once: what a core's cache holds; on a device few calls count more.
SCORED_KEYS, MOST_PRODUCTS = 4096, 2**22
MOST_PRODUCTS_ON_DEVICE = 2**26


def index_scores(query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_h w_h · relu(q_h · k) in float32, `[B, T, h, d]`, `[B, S, d]`, `[B, T, h]` → `[B, T, S]` (DeepSeek-V3.2,
    arXiv 2512.02556, eq. 1)."""
    weights = weights.float().unsqueeze(2)
    if torch.is_grad_enabled():
        return weighted_relu(torch.bmm(query.float().flatten(1, 2), key.float().transpose(1, 2)), weights)
    if use_index_kernel(query, key):
        return INDEXER.call(query, key, weights.squeeze(2))
    wide, scores = key.dtype == query.dtype and has_wide_products(query), []
    rows = (query if wide else query.float()).flatten(1, 2)
    for part in key.split(keys_at_once(rows), dim=1):
        if wide:
            products = torch.bmm(rows, part.transpose(1, 2), out_dtype=torch.float32)
        else:
            products = torch.bmm(rows, part.float().transpose(1, 2))
        scores.append(weighted_relu(products, weights))
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)


def weighted_relu(products: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_h w_h · relu(p_h) of products `[B, T · h, S]` and weights `[B, T, 1, h]` → `[B, T, S]`."""
    products = torch.relu(products).unflatten(1, (weights.shape[1], -1))
    return torch.matmul(weights, products).squeeze(2)


def keys_at_once(rows: torch.Tensor) -> int:
    """Keys that are scored in one call for rows `[B, T · h, d]`."""
    held = rows.shape[0] * rows.shape[1]
    if rows.device.type == "cpu":
        return max(256, min(SCORED_KEYS, MOST_PRODUCTS // held))
    return max(256, MOST_PRODUCTS_ON_DEVICE // held)


def top_positions(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` largest float32 scores, `[..., S]` → `[..., count]`, in no order; of equal ones the
    earlier.

    Where relu leaves zeros whole rows are equal, and a plain top-k would take any of them. Here score and position are
    one integer: the bits of the score in the order of its value, then the distance from the end.
    """
    ranks = RANKER.call(scores) if use_rank_kernel(scores) else plain_ranks(scores)
    return ranks.topk(count, dim=-1, sorted=False).indices


def plain_ranks(scores: torch.Tensor) -> torch.Tensor:
    """Scores `[..., S]` → integers in the order of score, then of position from the end, `[..., S]`."""
    bits = (scores.float() + 0.0).view(torch.int32)
    ranked = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    from_end = torch.arange(scores.shape[-1] - 1, -1, -1, device=scores.device)
    return (ranked << 32) + from_end


def select_keys(
    scores: Callable, key: torch.Tensor, count: int, queries: int, attention_mask: AttentionMask
) -> torch.Tensor | None:
    """Positions `[B, T, k]`, small integers, of the `count` keys of `[B, S, d]` that each of `queries` queries scores
    highest; None where there are no more keys than that.

    `scores(key, block)` gives `[B, t, S]` for a slice of the queries. Where fewer keys are visible, some positions are
    of hidden ones. No mask means causal from the first key on.
    """
    causal = attention_mask is None and queries > 1
    if causal:
        key = key[:, :queries]
    if key.shape[1] <= count:
        return None
    selected = []
    step = QUERY_BLOCK if key.device.type == "cpu" else QUERY_BLOCK_ON_DEVICE
    for start in range(0, queries, step):
        block = slice(start, min(start + step, queries))
        visible = num_visible_keys(attention_mask, block, key.shape[1], causal)
        selected.append(_select_in_block(scores, key[:, :visible], count, block, attention_mask, causal))
    return selected[0] if len(selected) == 1 else torch.cat(selected, dim=1)


def _select_in_block(scores, key, count, block, attention_mask, causal):
    batch, keys, _ = key.shape
    if keys <= count:
        everything = torch.arange(count, dtype=torch.int32, device=key.device)
        return everything.expand(batch, block.stop - block.start, -1)
    found = scores(key, block)
    if causal or attention_mask is not None:
        found = found.masked_fill(~visible_keys(attention_mask, block, keys, key.device)[:, 0], -torch.inf)
    return top_positions(found, count).int()


def visible_keys(attention_mask: AttentionMask, block: slice, keys: int, device: torch.device) -> torch.Tensor:
    """Whether the queries in `block` may see a key, `[B or 1, 1, t, keys]`, of a mask of booleans, of numbers to add,
    or by a rule; None means causal, queries and keys counted from the same token."""
    if attention_mask is None:
        queries = torch.arange(block.start, block.stop, device=device)
        return (queries[:, None] >= torch.arange(keys, device=device))[None, None]
    mask = mask_rows(attention_mask, block, keys, device)
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
