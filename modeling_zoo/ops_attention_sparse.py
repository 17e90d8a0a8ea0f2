"""The maths of an indexer: scores of keys, the best of them, and their distance from what attention does."""

import torch

# Keys scored at once, at most, and products held at once.
SCORED_KEYS, MOST_PRODUCTS = 4096, 2**22


def index_scores(query, key, weights):
    """Σ_h w_h · relu(q_h · k) in float32, `[B, T, h, d]`, `[B, S, d]`, `[B, T, h]` → `[B, T, S]` (DeepSeek-V3.2,
    arXiv 2512.02556, eq. 1)."""
    batch, length, heads, _ = query.shape
    rows, weights = query.float().flatten(1, 2), weights.float().unsqueeze(2)

    def score(part):
        products = torch.relu(torch.bmm(rows, part.float().transpose(1, 2)))
        return torch.matmul(weights, products.view(batch, length, heads, -1)).squeeze(2)

    if torch.is_grad_enabled():
        return score(key)
    step = max(256, min(SCORED_KEYS, MOST_PRODUCTS // (batch * length * heads)))
    return torch.cat([score(part) for part in key.split(step, dim=1)], dim=-1)


def top_positions(scores, count):
    """Positions of the `count` largest float32 scores, `[..., S]` → `[..., count]`, in no order; of equal ones the
    earlier.

    Where relu leaves zeros whole rows are equal, and a plain top-k would take any of them. Here score and position are
    one integer: the bits of the score in the order of its value, then the distance from the end.
    """
    length = scores.shape[-1]
    bits = (scores.float() + 0.0).view(torch.int32)
    ranked = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    from_end = torch.arange(length - 1, -1, -1, device=scores.device)
    return ((ranked << 32) + from_end).topk(count, dim=-1, sorted=False).indices


def visible_keys(mask):
    """A mask of booleans, or of numbers to add, as booleans."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def causal_keys(start, stop, keys, device):
    """Whether query start … stop - 1 stands at or behind a key, `[1, 1, T, keys]`, both counted from the first key."""
    queries = torch.arange(start, stop, device=device)
    return (queries[:, None] >= torch.arange(keys, device=device))[None, None]


def chosen_keys(positions, keys):
    """Positions `[B, T, k]` → True where a key was chosen, `[B, 1, T, keys]`; those beyond the keys are left out."""
    chosen = torch.zeros(*positions.shape[:2], keys + 1, dtype=torch.bool, device=positions.device)
    return chosen.scatter_(-1, positions.long().clamp(max=keys), True)[:, None, :, :keys]


def take_rows(states, positions):
    """`[B, S, d]` at `[B, T, k]` → `[B, T, k, d]`."""
    if states.device.type == "cpu":
        # Indexing by two tensors goes element by element there.
        rows = [entry.index_select(0, at.flatten()) for entry, at in zip(states, positions, strict=True)]
        return torch.stack(rows).unflatten(1, positions.shape[1:])
    entries = torch.arange(states.shape[0], device=states.device).view(-1, 1, 1)
    return states[entries, positions.long()]


def divergence(target, scores):
    """KL(target ‖ softmax(scores)) of each row, `[B, T, S]` twice → `[B, T]`."""
    entropy = torch.special.xlogy(target, target).sum(dim=-1)
    return entropy - (target * torch.log_softmax(scores, dim=-1)).sum(dim=-1)
