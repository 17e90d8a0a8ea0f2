"""One token of a matrix recurrence in the plain form, differentiable; arguments as in the file recurrences.

On a CPU every call counts here, those that only look at a tensor in another shape too.
"""

import torch

# Added to the sum of squares under the root of a key's or query's length, as in flash-linear-attention.
L2_EPSILON = 1e-6


def cast(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return states if states.dtype == dtype else states.to(dtype)


def delta_step(query, key, value, beta, log_decay, state, *, scale, normalize=False):
    """S <- Diag(e**g) S + β k (v - Sᵀ Diag(e**g) k)ᵀ; (o `[B, 1, H, V]`, S)."""
    dtype, width = state.dtype, state.shape[-1]
    query, key = _rows_of_token(query, key, state.shape[1], dtype, normalize)
    matrix = _decayed(state, log_decay)
    missing = torch.baddbmm(cast(value, dtype).reshape(-1, 1, width), key, matrix, alpha=-1)
    write = missing * cast(beta, dtype).reshape(-1, 1, 1)
    return _write_and_read(matrix, key, write, query, scale, state)


def additive_step(query, key, value, beta, log_decay, state, *, scale):
    """S <- Diag(e**g) S + β k vᵀ; (o `[B, 1, H, V]`, S)."""
    dtype, width = state.dtype, state.shape[-1]
    query, key = _rows_of_token(query, key, state.shape[1], dtype)
    matrix = _decayed(state, log_decay)
    write = cast(value, dtype).reshape(-1, 1, width)
    write = write if beta is None else write * cast(beta, dtype).reshape(-1, 1, 1)
    return _write_and_read(matrix, key, write, query, scale, state)


def _rows_of_token(query, key, heads, dtype, normalize=False):
    """q and k `[B, 1, H', K]` -> each `[B·H, 1, K]`."""
    width, groups = query.shape[-1], heads // key.shape[2]
    rows = cast(torch.cat([query, key], dim=-1), dtype).view(-1, 2, width)
    if normalize:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        # sqrt(x² + ε), as in l2_normalize.
        rows = rows / torch.hypot(length, torch.scalar_tensor(L2_EPSILON**0.5, dtype=dtype, device=rows.device))
    return (rows if groups == 1 else rows.repeat_interleave(groups, dim=0)).split(1, dim=1)


def _decayed(state, log_decay):
    """Diag(e**g) S as `[B·H, K, V]`; S itself when gradients are off."""
    matrix = state.view(-1, *state.shape[2:])
    if log_decay is None:
        return matrix
    decay = cast(log_decay, state.dtype).exp().view(matrix.shape[0], -1, 1)
    return matrix * decay if torch.is_grad_enabled() else matrix.mul_(decay)


def _write_and_read(matrix, key, write, query, scale, state):
    """S + k wᵀ, S itself when gradients are off, and the output: rows `[B·H, 1, ...]`."""
    update = torch.baddbmm if torch.is_grad_enabled() else torch.Tensor.baddbmm_
    matrix = update(matrix, key.mT, write)
    # beta=0: only the product, scaled.
    output = torch.baddbmm(write, query, matrix, beta=0, alpha=scale)
    batch, heads, _, width = state.shape
    # The very tensor that was given where it was written into: a cache then has nothing to copy.
    return output.view(batch, 1, heads, width), matrix.view_as(state) if torch.is_grad_enabled() else state
