"""Scores that depend on every key between a key and its query: forgetting and stick-breaking attention.

Both need keys from the oldest to the newest. `order` says which slots these are where a cache keeps them otherwise, in
a ring, and is None where they stand in order.
"""

import torch
import torch.nn.functional as F

# Queries whose scores in float32 are held together.
STICK_BLOCK = 256


def boolean_mask(attention_mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, `[B or 1, 1, T, S]`, from a mask of booleans or of numbers to add. None: one query
    sees them all, the first of many queries the first key, the next one two."""
    if attention_mask is None:
        slots = torch.arange(keys, device=device)
        newest = slots[-1:] if queries == 1 else slots[:queries]
        return (slots <= newest[:, None])[None, None]
    if attention_mask.dtype == torch.bool:
        return attention_mask
    return attention_mask > torch.finfo(attention_mask.dtype).min / 2


def sums_so_far(values: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Sums over the slots up to each one, itself included, from the oldest on: `[..., S]` → `[..., S]`."""
    if order is None:
        return values.cumsum(dim=-1)
    return torch.empty_like(values).index_copy(-1, order, values[..., order].cumsum(dim=-1))


def forgetting_bias(
    log_forget: torch.Tensor, attention_mask: torch.Tensor | None, queries: int, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ_{l = j + 1 ... i} log f_l for query i and key j, `[B, H, S]` → `[B, H, T, S]`; a token that no query sees
    forgets nothing."""
    visible = boolean_mask(attention_mask, queries, log_forget.shape[-1], log_forget.device)
    sums = sums_so_far(log_forget.float().masked_fill(~visible.any(dim=-2), 0.0), order)
    if queries == 1:
        # The sums fall from token to token, and the query is the newest.
        return (sums.amin(dim=-1, keepdim=True) - sums)[:, :, None]
    slots = torch.arange(sums.shape[-1], device=sums.device)
    newest = (visible * slots).amax(dim=-1).expand(*sums.shape[:2], -1)
    return sums.gather(-1, newest)[..., None] - sums[:, :, None]


def plain_stick_breaking(
    scores: torch.Tensor, visible: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    """A_ij = σ(z_ij) Π_{j < l < i} (1 - σ(z_il)) over the keys before a query, `[B, H, T, S]` → `[B, H, T, S]`, in
    float32; the newest key that a query sees is its own, which it does not read."""
    slots = torch.arange(scores.shape[-1], device=scores.device)
    ages = slots if order is None else torch.empty_like(slots).index_copy(0, order, slots)
    visible = visible & (ages < torch.where(visible, ages, -1).amax(dim=-1, keepdim=True))
    left = sums_so_far(F.logsigmoid(-scores).masked_fill(~visible, 0.0), order)
    total = left.amin(dim=-1, keepdim=True)
    return torch.exp(F.logsigmoid(scores) + total - left).masked_fill(~visible, 0.0)


def stick_breaking_weights(
    scores: torch.Tensor, visible: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    """`plain_stick_breaking`, block by block of queries where there are many."""
    blocks = zip(scores.split(STICK_BLOCK, dim=2), visible.split(STICK_BLOCK, dim=2), strict=True)
    weights = [plain_stick_breaking(part.float(), seen, order).to(scores.dtype) for part, seen in blocks]
    return weights[0] if len(weights) == 1 else torch.cat(weights, dim=2)
