"""Scores along a path of reflections: between its query and a key, every token turns what is left of the query.

    H_t = I - u_t u_tᵀ        score of query i and key j = q_iᵀ H_i H_(i-1) ... H_(j+1) k_j

One token after the other that is a recurrence over the keys, from the newest to the oldest. In blocks of keys it is a
few products and the inverse of a triangular matrix, L = I + tril(U Uᵀ, -1), which holds all products of reflections in
a block (the UT transform: Joffrain et al. 2006; Yang et al. 2025, arXiv 2505.16381, §3):

    scores of a block = Q Kᵀ - R L⁻¹ tril(U Kᵀ, -1)        R = Q Uᵀ where the reflection is not behind the query
    Q for older keys  = Q - R L⁻¹ U
"""

import torch
import torch.nn.functional as F

# Keys that a query passes at once.
PATH_BLOCK = 64


def path_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    reflections: torch.Tensor,
    visible: torch.Tensor,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[B, H, T, d]`, keys and u `[B, K, S, d]` → scores `[B, H, T, S]` in float32.

    `visible` `[B or 1, 1, T, S]`: which keys a query sees, the newest being its own; what no query sees reflects
    nothing. `order`: the slots from the oldest to the newest, None where they stand so.
    """
    reflections = reflections.masked_fill(~visible.any(dim=2)[..., None], 0.0)
    if query.shape[2] == 1 and query.device.type != "cpu":
        return one_query_scores(query, key, reflections, order)
    if order is not None:
        key, reflections, visible = key[:, :, order], reflections[:, :, order], visible[..., order]
    groups = query.shape[1] // key.shape[1]
    slots = torch.arange(key.shape[2], device=key.device)
    newest = (visible * slots).amax(dim=-1).repeat(1, 1, groups)[..., None]
    # The query heads that read one key head, behind each other: `[B, K, H / K · T, d]`.
    left = query.float().unflatten(1, (-1, groups)).flatten(2, 3)
    blocks = zip(*(states.float().split(PATH_BLOCK, dim=2) for states in (key, reflections)), strict=True)
    blocks = [*zip(blocks, slots.split(PATH_BLOCK), strict=True)]
    scores = []
    for (keys, turns), places in reversed(blocks):
        reads = (left @ turns.mT).masked_fill(places > newest, 0.0)
        between = (turns @ turns.mT).tril(-1)
        steps = torch.linalg.solve_triangular(between, reads, upper=False, left=False, unitriangular=True)
        scores.append(left @ keys.mT - steps @ (turns @ keys.mT).tril(-1))
        left = left - steps @ turns
    found = torch.cat(scores[::-1], dim=-1).unflatten(2, (groups, -1)).flatten(1, 2)
    return found if order is None else torch.empty_like(found).index_copy(-1, order, found)


def one_query_scores(
    query: torch.Tensor, key: torch.Tensor, reflections: torch.Tensor, order: torch.Tensor | None
) -> torch.Tensor:
    """`path_scores` of one query per head, `[B, H, 1, d]` → `[B, H, 1, S]`, in calls that grow with log S: where each
    starts a kernel, a block after the other would be thousands. Keys that it does not see reflect nothing."""
    count, groups = key.shape[2], query.shape[1] // key.shape[1]
    if order is not None:
        key, reflections = key[:, :, order], reflections[:, :, order]
    # The oldest block is filled up in front: `[B, K, S / 64, 64, d]`.
    missing = (0, 0, -count % PATH_BLOCK, 0)
    keys, turns = (F.pad(x.float(), missing).unflatten(2, (-1, PATH_BLOCK)) for x in (key, reflections))
    between = (turns @ turns.mT).tril(-1)
    passed = turns.mT @ torch.linalg.solve_triangular(between, turns, upper=False, unitriangular=True)
    whole = torch.eye(turns.shape[-1], device=turns.device) - passed
    left = behind_newer_blocks(query.float().unflatten(1, (-1, groups)).flatten(2, 3).unsqueeze(2), whole)
    steps = torch.linalg.solve_triangular(between, left @ turns.mT, upper=False, left=False, unitriangular=True)
    scores = left @ keys.mT - steps @ (turns @ keys.mT).tril(-1)
    found = scores.transpose(2, 3).flatten(3)[..., -count:].flatten(1, 2).unsqueeze(2)
    return found if order is None else torch.empty_like(found).index_copy(-1, order, found)


def behind_newer_blocks(left: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The query `[..., 1, G, d]` as it reaches each of n blocks, `[..., n, G, d]`, the newest and last of them first.

    `whole` `[..., n, d, d]`: what a block as a whole turns it by. Two blocks at a time, then each of the two.
    """
    count = whole.shape[2]
    if count == 1:
        return left
    if count % 2:
        eye = torch.eye(whole.shape[-1], device=whole.device).expand_as(whole[:, :, :1])
        whole = torch.cat((eye, whole), dim=2)
    older, newer = whole[:, :, ::2], whole[:, :, 1::2]
    reached = behind_newer_blocks(left, newer @ older)
    both = torch.stack((reached @ newer, reached), dim=3).flatten(2, 3)
    return both[:, :, count % 2 :]
