"""One token of a matrix recurrence: the plain step, and on a CPU one with a single pass over the state, whose write is
deferred. Arguments as in `ops_recurrence`.

    S = Diag(c) S_0 + Σ_i k_i w_iᵀ        c and every k_i decayed up to the current token

S_0 is the state as it stands in memory, the sum runs over the deferred writes. The plain step passes over the state six
times: decay and write each read and write it, key and query read it. Here S_0 is read once, by key and query together,
and the sum is small; after `SLOTS` tokens all of it is written into S_0 at once. Nothing is divided by a decay, so even
the strongest one does no harm. On a CPU every call counts here, also those that only view a tensor in another shape.
"""

from typing import NamedTuple

import torch

# Added to the sum of squares under the root of a key's or query's length, as in flash-linear-attention.
L2_EPSILON = 1e-6
# Writes that can be deferred.
SLOTS = 16
# Added to decayed numbers, far below their rounding: without it they end among the subnormal numbers, which a CPU
# multiplies many times slower.
FLOOR = 1e-30


def cast(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`states.to(dtype)`, without the call where nothing changes."""
    return states if states.dtype == dtype else states.to(dtype)


def delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor | None,
    state: torch.Tensor,
    *,
    scale: float,
    normalize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- Diag(e**g) S + β k (v - Sᵀ Diag(e**g) k)ᵀ; (o `[B, 1, H, V]`, S)."""
    dtype, width = state.dtype, state.shape[-1]
    query, key = _rows_of_token(query, key, state.shape[1], dtype, normalize)
    matrix = _decayed(state, log_decay)
    missing = torch.baddbmm(cast(value, dtype).reshape(-1, 1, width), key, matrix, alpha=-1)
    write = missing * cast(beta, dtype).reshape(-1, 1, 1)
    return _write_and_read(matrix, key, write, query, scale, state)


def additive_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    state: torch.Tensor,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
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
    """Diag(e**g) S as `[B·H, K, V]`; written into S itself when gradients are off."""
    matrix = state.view(-1, *state.shape[2:])
    if log_decay is None:
        return matrix
    decay = cast(log_decay, state.dtype).exp().view(matrix.shape[0], -1, 1)
    return matrix * decay if torch.is_grad_enabled() else matrix.mul_(decay)


def _write_and_read(matrix, key, write, query, scale, state):
    """(o, S + k wᵀ), written into S itself when gradients are off; key, write and query are `[B·H, 1, ...]`."""
    update = torch.baddbmm if torch.is_grad_enabled() else torch.Tensor.baddbmm_
    matrix = update(matrix, key.mT, write)
    # beta=0: only the product, scaled.
    output = torch.baddbmm(write, query, matrix, beta=0, alpha=scale)
    batch, heads, _, width = state.shape
    # The very tensor that was given where it was written into: a cache then has nothing to copy.
    return output.view(batch, 1, heads, width), matrix.view_as(state) if torch.is_grad_enabled() else state


class StepViews(NamedTuple):
    """Views of the buffers of a DeferredState for a token before which m writes were deferred.

    H heads of values share H' heads of keys; N = B·H; R rows read the state: q and k, or q alone.
    """

    # c and the deferred keys, in shapes that a decay per head [B, 1, H] or per channel [B, 1, H, K] multiplies.
    head_decayed: torch.Tensor
    channel_decayed: torch.Tensor
    # q and k of this token, [H / H', B, 1, 2, H', K], and those of them that read, [N, R, K].
    query_key: torch.Tensor
    rows: torch.Tensor
    # Of this token and the deferred ones: keys [N, K, m + 1], writes [N, m + 1, V], rows · keys [N, R, m + 1].
    keys: torch.Tensor
    writes: torch.Tensor
    scores: torch.Tensor
    # Of this token: q · k [B, 1, H, 1], its write w [B, 1, H, V] and the same as [V, B, 1, H].
    query_dot_key: torch.Tensor
    write: torch.Tensor
    write_by_channel: torch.Tensor


class DeferredState:
    """The state `[B, H, K, V]` of a cache, contiguous, and the writes it still lacks.

    After `flush`, and until the next `step`, `state` alone is complete. No gradient passes through a step.
    """

    def __init__(self, state: torch.Tensor):
        self.state = state
        self.matrix = state.view(-1, *state.shape[2:])
        self.dtype, self.inference = state.dtype, state.is_inference()
        self.count, self.layout = 0, None

    def step(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor,
        beta: torch.Tensor | None,
        log_decay: torch.Tensor | None,
        *,
        delta: bool,
        scale: float,
        normalize: bool = False,
    ) -> torch.Tensor:
        """The output `[B, 1, H, V]` of one token; arguments as in `ops_recurrence`."""
        pair = query if key is None else torch.stack([query, key], dim=2)
        if self.layout != (pair.shape[3], delta):
            self.allocate(pair.shape[3], delta)
        views, dtype = self.views[self.count], self.dtype
        if log_decay is not None:
            kept = views.head_decayed if log_decay.dim() == 3 else views.channel_decayed
            kept.mul_(cast(log_decay, dtype).exp())
        self._store_query_key(views.query_key, cast(pair, dtype), normalize)
        value, beta = cast(value, dtype), None if beta is None else cast(beta, dtype)
        decayed = torch.addcmul(self.floor, views.rows, self.decay, out=self.decayed)
        read = torch.bmm(decayed, self.matrix, out=self.read)
        torch.bmm(views.rows, views.keys, out=views.scores)
        finish = self._delta if delta else self._additive
        output = finish(views, read, value, beta, scale)
        self.count += 1
        if self.count == SLOTS:
            self.flush()
        return output

    def _delta(self, views, read, value, beta, scale):
        """w = β (v - Sᵀk), o = scale · (Sᵀq + (q · k) w), S the state before the write."""
        # w itself is still zero here.
        read.baddbmm_(views.scores, views.writes)
        torch.sub(value, self.read_by_key, out=self.missing)
        torch.mul(self.missing_by_channel, beta, out=views.write_by_channel)
        return torch.addcmul(self.read_by_query, views.query_dot_key, views.write).mul_(self._factor(scale))

    def _additive(self, views, read, value, beta, scale):
        """w = β v, o = scale · Sᵀq, S the state behind the write."""
        if beta is None:
            views.write.copy_(value)
        else:
            torch.mul(value, beta.unsqueeze(-1), out=views.write)
        output = torch.baddbmm(read, views.scores, views.writes, beta=scale, alpha=scale)
        return output.view(views.write.shape)

    def _store_query_key(self, query_key, pair, normalize):
        """Copies q and k `[B, 1, 2, H', K]` to every head that shares them, normalized to length 1 if wanted."""
        if not normalize:
            query_key.copy_(pair)
            return
        length = torch.linalg.vector_norm(pair, dim=-1, keepdim=True)
        # sqrt(x² + ε)
        torch.div(pair, torch.hypot(length, self.shortest), out=query_key)

    def _factor(self, scale):
        # As a tensor: turning a number into one takes longer than so small a product.
        if scale != self.scale:
            self.scale, self.scale_tensor = scale, self._scalar(scale)
        return self.scale_tensor

    def _scalar(self, value):
        with torch.inference_mode(False):
            return torch.scalar_tensor(value, dtype=self.dtype)

    @property
    def workspace_bytes(self) -> int:
        """Bytes held beside the state, once `allocate` was called."""
        buffers = (self.keys, self.writes, self.decayed, self.read, self.missing, self.products)
        return sum(buffer.nbytes for buffer in buffers)

    def flush(self) -> None:
        """Writes everything deferred into `state`."""
        if not self.count:
            return
        # Those of the last token have every deferred write.
        views, self.count = self.views[self.count - 1], 0
        # A tensor made in inference mode can be written into there alone.
        with torch.inference_mode() if self.inference else torch.no_grad():
            self.matrix.mul_(self.factors.clamp_min_(self.floor))
            self.matrix.baddbmm_(views.keys, views.writes)
            self.factors.fill_(1.0)
            self.writes.zero_()

    def allocate(self, key_heads: int, delta: bool) -> None:
        """Makes the buffers and all views of them, once: taking a view costs as much as a small product."""
        self.flush()
        self.layout = key_heads, delta
        (batch, heads, width, value_width), reads = self.state.shape, 1 + delta
        number, new = batch * heads, self.state.new_zeros
        # Tensors that may be written into within inference mode and outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.floor, self.scale = self._scalar(FLOOR), None
            # In this shape it also gives a length to every head that shares a key.
            self.shortest = new(heads // key_heads, 1, 1, 1, 1, 1).fill_(L2_EPSILON**0.5)
            # From the end: c, the deferred keys, the newest of them first in memory, before it the token's query.
            self.keys, self.writes = new(number, SLOTS + 2, width), new(number, SLOTS, value_width)
            self.decay = self.keys[:, -1:].fill_(1.0)
            self.factors = self.decay.mT
            self.decayed, self.read = new(number, reads, width), new(number, reads, value_width)
            self.read_by_query, self.read_by_key = (
                self.read[:, row].view(batch, 1, heads, -1) for row in (0, reads - 1)
            )
            self.missing = new(batch, 1, heads, value_width)
            self.missing_by_channel = self.missing.permute(3, 0, 1, 2)
            self.products = new(number * reads * SLOTS)
            self.views = [self._views(m, batch, heads, key_heads, reads) for m in range(SLOTS)]

    def _views(self, deferred, batch, heads, key_heads, reads):
        newest = SLOTS - deferred
        kept = self.keys[:, newest + 1 :].unflatten(0, (batch, heads))
        pair = self.keys[:, newest - 1 : newest + 1]
        scores = self.products[: len(pair) * reads * (deferred + 1)].view(len(pair), reads, deferred + 1)
        write = self.writes[:, newest - 1].view(batch, 1, heads, -1)
        return StepViews(
            head_decayed=kept.permute(2, 3, 0, 1).unsqueeze(3),
            channel_decayed=kept.permute(2, 0, 1, 3).unsqueeze(2),
            query_key=pair.view(batch, 1, key_heads, heads // key_heads, 2, -1).permute(3, 0, 1, 4, 2, 5),
            rows=pair[:, :reads],
            keys=self.keys[:, newest:-1].mT,
            writes=self.writes[:, newest - 1 :],
            scores=scores,
            query_dot_key=scores[:, 0, 0].view(batch, 1, heads, 1),
            write=write,
            write_by_channel=write.permute(3, 0, 1, 2),
        )


# What a recurrence starts from: a state `[B, H, K, V]`, one with deferred writes, or None for zeros.
RecurrentState = torch.Tensor | DeferredState | None
