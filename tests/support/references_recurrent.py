"""The recurrences as their papers write them: one token after the other, one head at a time in effect, in float64."""

import torch


def _float64(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def _heads(states, heads):
    return states.repeat_interleave(heads // states.shape[2], dim=2)


def matrix_recurrence(query, key, value, beta, log_decay, state, *, delta, scale, normalize=False):
    """S <- Diag(e**g) S; S <- S + β k (v - [delta] Sᵀk)ᵀ; o = scale · Sᵀq, token by token; shapes as in recurrences."""
    query, key, value, beta, log_decay, state = _float64(query, key, value, beta, log_decay, state)
    batch, length, heads, value_width = value.shape
    if normalize:
        query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    query, key = _heads(query, heads), _heads(key, heads)
    if state is None:
        state = value.new_zeros(batch, heads, key.shape[-1], value_width)
    outputs = []
    for t in range(length):
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            state = state * (decay[..., None] if decay.dim() == 3 else decay[..., None, None])
        write = value[:, t]
        if delta:
            write = write - torch.einsum("bhkv,bhk->bhv", state, key[:, t])
        if beta is not None:
            write = write * beta[:, t, :, None]
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], write)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, query[:, t]) * scale)
    return torch.stack(outputs, dim=1), state


def householder_product(query, key, value, beta, log_decay, state, *, scale):
    """S <- Diag(e**g) S; n times S <- (I - β_j k_j k_jᵀ) S + β_j k_j v_jᵀ; o = scale · Sᵀq, token by token; k, v, β as
    `[B, L, n, ...]`, k and q of length 1."""
    query, key, value, beta, log_decay, state = _float64(query, key, value, beta, log_decay, state)
    batch, length, writes, heads, value_width = value.shape
    query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    query, key = _heads(query, heads), key.repeat_interleave(heads // key.shape[3], dim=3)
    one = torch.eye(key.shape[-1], dtype=torch.double)
    state = value.new_zeros(batch, heads, key.shape[-1], value_width) if state is None else state
    outputs = []
    for t in range(length):
        decay = torch.zeros(()) if log_decay is None else log_decay[:, t]
        state = state * (decay.exp()[..., None] if decay.dim() == 3 else decay.exp()[..., None, None])
        for j in range(writes):
            k, v, b = key[:, t, j, ..., None], value[:, t, j, ..., None, :], beta[:, t, j, :, None, None]
            state = (one - b * k @ k.mT) @ state + b * k @ v
        outputs.append((query[:, t, :, None] @ state).squeeze(2) * scale)
    return torch.stack(outputs, dim=1), state


def selective_scan(inputs, time_step, transition, write, read, skip, state):
    """S_nc <- e**(Δ_c A_cn) S_nc + Δ_c x_c B_n; y_c = Σ_n S_nc C_n + D_c x_c.

    inputs, time_step `[B, L, C]`; transition A `[C, N]`; write B, read C `[B, L, N]`; skip D `[C]`; state `[B, N, C]`.
    """
    inputs, time_step, transition, write, read, skip, state = _float64(
        inputs, time_step, transition, write, read, skip, state
    )
    if state is None:
        state = inputs.new_zeros(inputs.shape[0], transition.shape[1], inputs.shape[2])
    outputs = []
    for t in range(inputs.shape[1]):
        decay = torch.exp(torch.einsum("bc,cn->bnc", time_step[:, t], transition))
        state = decay * state + torch.einsum("bc,bn->bnc", time_step[:, t] * inputs[:, t], write[:, t])
        outputs.append(torch.einsum("bnc,bn->bc", state, read[:, t]) + skip * inputs[:, t])
    return torch.stack(outputs, dim=1), state


def gated_linear_unit(inputs, log_decay, state):
    """h <- a h + sqrt(1 - a²) x with a = e**g, all `[B, L, C]`; state `[B, C]`."""
    inputs, log_decay, state = _float64(inputs, log_decay, state)
    if state is None:
        state = torch.zeros_like(inputs[:, 0])
    outputs = []
    for t in range(inputs.shape[1]):
        decay = log_decay[:, t].exp()
        state = decay * state + (1 - decay.square()).sqrt() * inputs[:, t]
        outputs.append(state)
    return torch.stack(outputs, dim=1), state


def causal_convolution(inputs, weight, bias, window):
    """y_t = Σ_j weight_j x_(t - K + 1 + j) + bias; inputs `[B, L, C]`, weight `[C, K]`, window `[B, C, K]` or None."""
    inputs, weight, bias, window = _float64(inputs, weight, bias, window)
    taps = weight.shape[1]
    before = inputs.new_zeros(inputs.shape[0], taps, inputs.shape[2]) if window is None else window.transpose(1, 2)
    line = torch.cat([before, inputs], dim=1)
    outputs = []
    for t in range(inputs.shape[1]):
        seen = line[:, t + 1 : t + 1 + taps]
        outputs.append((seen * weight.T).sum(1) + (0 if bias is None else bias))
    return torch.stack(outputs, dim=1)
