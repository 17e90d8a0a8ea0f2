"""Recurrences with one matrix of state per head, and their one-token steps.

    S <- Diag(e**g) S + β k (v - [delta] Sᵀk)ᵀ        o = scale · Sᵀq

Shapes: query, key `[B, L, H', K]`, or both in place of query, `[B, L, 2, H', K]`, and no key; value `[B, L, H, V]`,
H a multiple of H' (consecutive heads share a key head);
beta `[B, L, H]`; log_decay (g <= 0) `[B, L, H]` per head or `[B, L, H, K]` per channel, or None for no decay;
state `[B, H, K, V]`, float32 (float64 for float64 inputs), None for zeros. All arithmetic is in the dtype of the state.
Both functions return (output `[B, L, H, V]` in the dtype of the state, state). A single token with a state updates that
state in place when gradients are off; the state can then also be a DeferredState. `packed`: rows hold several sequences
(PackedSequences, without a state), each of which starts from zeros; the state returned is that of the last of a row.
"""

from itertools import repeat

import torch
import torch.nn.functional as F

from .ops_packing import PackedSequences
from .ops_recurrence_chunked import additive_chunks, delta_chunks, from_chunks, to_chunks
from .ops_recurrence_decode import L2_EPSILON, DeferredState, additive_step, delta_step
from .ops_recurrence_fla import can_run_kernel, run_kernel

# Chunks are worked off in segments of so many tokens: bounded intermediate memory, and better use of CPU caches.
SEGMENT = 512


def state_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float32, or float64 where an input has it."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def l2_normalize(states: torch.Tensor) -> torch.Tensor:
    """x / sqrt(Σx² + 1e-6) over the last dimension."""
    width = states.shape[-1]
    # Σx² + ε = width · (mean x² + ε / width): one fused operation.
    return F.rms_norm(states, (width,), eps=L2_EPSILON / width) * width**-0.5


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    chunk_size: int = 32,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- Diag(e**g) S + β k (v - Sᵀ Diag(e**g) k)ᵀ, o = scale · Sᵀq; see the file for shapes.

    DeltaNet (Schlag et al. 2021) without decay, Gated DeltaNet (Yang et al. 2024) with one decay per head, Kimi delta
    attention (Moonshot 2025) with one per channel. `normalize`: q and k to length 1 first. scale: K ** -0.5.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(state, DeferredState):
        inputs = (query, key, value, beta, log_decay)
        return state.step(*inputs, delta=True, scale=scale, normalize=normalize), state
    query, key = query.unbind(2) if key is None else (query, key)
    if can_run_kernel(query, packed):
        inputs = (query, key, value, beta, log_decay, state)
        return run_kernel(*inputs, delta=True, scale=scale, normalize=normalize, packed=packed)
    if state is not None and query.shape[1] == 1:
        return delta_step(query, key, value, beta, log_decay, state, scale=scale, normalize=normalize)
    dtype = state_dtype(query, value)
    query, key = query.to(dtype), key.to(dtype)
    if normalize:
        query, key = l2_normalize(query), l2_normalize(key)
    return _in_segments(delta_chunks, query * scale, key, value, beta, log_decay, state, chunk_size, packed)


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor,
    beta: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    chunk_size: int = 32,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- Diag(e**g) S + β k vᵀ, o = scale · Sᵀq; see the file for shapes; beta None is 1.

    Plain linear attention (Katharopoulos et al. 2020) without decay, lightning attention (Qin et al. 2024) with a
    constant one, Mamba-2 (Dao and Gu 2024) with one per head, gated linear attention (Yang et al. 2023) per channel.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(state, DeferredState):
        return state.step(query, key, value, beta, log_decay, delta=False, scale=scale), state
    query, key = query.unbind(2) if key is None else (query, key)
    if can_run_kernel(query, packed):
        return run_kernel(query, key, value, beta, log_decay, state, delta=False, scale=scale, packed=packed)
    if state is not None and query.shape[1] == 1:
        return additive_step(query, key, value, beta, log_decay, state, scale=scale)
    dtype = state_dtype(query, value)
    inputs = (query.to(dtype) * scale, key, value, beta, log_decay, state)
    return _in_segments(additive_chunks, *inputs, chunk_size, packed)


def _in_segments(chunked, query, key, value, beta, log_decay, state, chunk_size, packed):
    dtype = state_dtype(query, value)
    batch, length, heads, width = value.shape
    if log_decay is None:
        log_decay = value.new_zeros(batch, length, heads, dtype=dtype)
    if packed is not None:
        # e**-inf = 0: nothing is left of the state before.
        starts = packed.starts.view(batch, length, *[1] * (log_decay.dim() - 2))
        log_decay = log_decay.masked_fill(starts, -torch.inf)
    if state is None:
        state = value.new_zeros(batch, heads, query.shape[-1], width, dtype=dtype)
    state = state.to(dtype).flatten(0, 1)
    inputs = (query, key, value, beta, log_decay)
    segments = [repeat(None) if states is None else states.split(SEGMENT, dim=1) for states in inputs]
    outputs = []
    for segment in zip(*segments, strict=False):
        parts = [None if states is None else to_chunks(states, chunk_size, dtype) for states in segment]
        chunks, state = chunked(*parts, state)
        outputs.append(from_chunks(chunks, batch, segment[0].shape[1]))
    return torch.cat(outputs, dim=1), state.unflatten(0, (batch, heads))
