"""A recurrent state whose last writes wait beside it: on a CPU one token then costs a single pass over the state.

    S = Diag(c) S_0 + Σ_i k_i w_iᵀ        c and every k_i decayed up to the token at hand

The plain step passes over the state six times: decay and write each read and write it, key and query read it. Here S_0
is read once, by key and query together, and what waits is small; after `SLOTS` tokens all of it is written at once.
Nothing is divided by a decay, so none is too strong.
"""

from typing import NamedTuple

import torch

from .ops_recurrence_steps import L2_EPSILON, cast

# Tokens whose writes can wait.
SLOTS = 16
# Added to what is decayed, so that it ends here and not among subnormal numbers, which a CPU multiplies many times
# slower: far below the rounding of anything that it is added to.
FLOOR = 1e-30


class Place(NamedTuple):
    """Where a token finds and leaves things while m writes wait: views of the buffers of a DelayedState.

    `by_head`, `by_channel`: c and the keys that wait, to be decayed by `[B, 1, H]` and `[B, 1, H, K]`; `given`
    `[H / H', B, 1, 2, H', K]`: q and k of this token; `rows` `[N, R, K]`: those of them that read; `keys`
    `[N, K, m + 1]` and `writes` `[N, m + 1, V]`: of this token and those that wait; `scores` `[N, R, m + 1]`: rows ·
    keys; `own` `[B, 1, H, 1]`: q · k; `write` `[B, 1, H, V]` and `turned` `[V, B, 1, H]`: w of this token.
    """

    by_head: torch.Tensor
    by_channel: torch.Tensor
    given: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor
    writes: torch.Tensor
    scores: torch.Tensor
    own: torch.Tensor
    write: torch.Tensor
    turned: torch.Tensor


class DelayedState:
    """The state `[B, H, K, V]` of a cache, contiguous, and the writes that it lacks; N = B·H below.

    `state` alone is right after `settle` and until the next step. Steps are without gradients.
    """

    def __init__(self, state):
        self.state = state
        self.matrix = state.view(-1, *state.shape[2:])
        self.dtype, self.inference = state.dtype, state.is_inference()
        self.count, self.layout = 0, None

    def step(self, query, key, value, beta, log_decay, *, delta, scale, normalize=False):
        """The output `[B, 1, H, V]` of one token; arguments as in the file recurrences."""
        pair = query if key is None else torch.stack([query, key], dim=2)
        if self.layout != (pair.shape[3], delta):
            self.lay_out(pair.shape[3], delta)
        place, dtype = self.places[self.count], self.dtype
        if log_decay is not None:
            kept = place.by_head if log_decay.dim() == 3 else place.by_channel
            kept.mul_(cast(log_decay, dtype).exp())
        self._take(place.given, cast(pair, dtype), normalize)
        value, beta = cast(value, dtype), None if beta is None else cast(beta, dtype)
        decayed = torch.addcmul(self.floor, place.rows, self.decay, out=self.decayed)
        read = torch.bmm(decayed, self.matrix, out=self.read)
        torch.bmm(place.rows, place.keys, out=place.scores)
        finish = self._delta if delta else self._additive
        output = finish(place, read, value, beta, scale)
        self.count += 1
        if self.count == SLOTS:
            self.settle()
        return output

    def _delta(self, place, read, value, beta, scale):
        """w = β (v - Sᵀk), o = scale · (Sᵀq + (q · k) w), S the state before the write."""
        # The place of w is still zero.
        read.baddbmm_(place.scores, place.writes)
        torch.sub(value, self.predicted, out=self.missing)
        torch.mul(self.turned, beta, out=place.turned)
        return torch.addcmul(self.found, place.own, place.write).mul_(self._factor(scale))

    def _additive(self, place, read, value, beta, scale):
        """w = β v, o = scale · Sᵀq, S the state behind the write."""
        if beta is None:
            place.write.copy_(value)
        else:
            torch.mul(value, beta.unsqueeze(-1), out=place.write)
        output = torch.baddbmm(read, place.scores, place.writes, beta=scale, alpha=scale)
        return output.view(place.write.shape)

    def _take(self, given, pair, normalize):
        """q and k `[B, 1, 2, H', K]`, of length 1 where asked for, to the places of all their heads."""
        if not normalize:
            given.copy_(pair)
            return
        length = torch.linalg.vector_norm(pair, dim=-1, keepdim=True)
        # sqrt(x² + ε)
        torch.div(pair, torch.hypot(length, self.shortest), out=given)

    def _factor(self, scale):
        # A tensor: a number is looked at anew by every call, for longer than such a product takes.
        if scale != self.scale:
            self.scale, self.scale_tensor = scale, self._scalar(scale)
        return self.scale_tensor

    def _scalar(self, value):
        with torch.inference_mode(False):
            return torch.scalar_tensor(value, dtype=self.dtype)

    @property
    def room(self):
        """Bytes held beside the state, from `lay_out` on."""
        buffers = (self.keys, self.writes, self.decayed, self.read, self.missing, self.products)
        return sum(buffer.nbytes for buffer in buffers)

    def settle(self):
        """Write all that waits into `state`."""
        if not self.count:
            return
        # The place of the last token: what waited beside it, and itself.
        place, self.count = self.places[self.count - 1], 0
        # A tensor made in inference mode can be written into there alone.
        with torch.inference_mode() if self.inference else torch.no_grad():
            self.matrix.mul_(self.factors.clamp_min_(self.floor))
            self.matrix.baddbmm_(place.keys, place.writes)
            self.factors.fill_(1.0)
            self.writes.zero_()

    def lay_out(self, key_heads, delta):
        """Buffers and all views of them, once: taking a view costs as much as a small product."""
        self.settle()
        self.layout = key_heads, delta
        (batch, heads, width, value_width), reads = self.state.shape, 1 + delta
        number, new = batch * heads, self.state.new_zeros
        # Tensors that may be written into within inference mode and outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.floor, self.scale = self._scalar(FLOOR), None
            # In this shape it also gives a length to every head that shares a key.
            self.shortest = new(heads // key_heads, 1, 1, 1, 1, 1).fill_(L2_EPSILON**0.5)
            # From the end: c, then the keys that wait, newest first, before them the query of the token at hand.
            self.keys, self.writes = new(number, SLOTS + 2, width), new(number, SLOTS, value_width)
            self.decay = self.keys[:, -1:].fill_(1.0)
            self.factors = self.decay.mT
            self.decayed, self.read = new(number, reads, width), new(number, reads, value_width)
            self.found, self.predicted = (self.read[:, row].view(batch, 1, heads, -1) for row in (0, reads - 1))
            self.missing = new(batch, 1, heads, value_width)
            self.turned = self.missing.permute(3, 0, 1, 2)
            self.products = new(number * reads * SLOTS)
            self.places = [self._place(m, batch, heads, key_heads, reads) for m in range(SLOTS)]

    def _place(self, waiting, batch, heads, key_heads, reads):
        newest = SLOTS - waiting
        kept = self.keys[:, newest + 1 :].unflatten(0, (batch, heads))
        pair = self.keys[:, newest - 1 : newest + 1]
        scores = self.products[: len(pair) * reads * (waiting + 1)].view(len(pair), reads, waiting + 1)
        write = self.writes[:, newest - 1].view(batch, 1, heads, -1)
        return Place(
            by_head=kept.permute(2, 3, 0, 1).unsqueeze(3),
            by_channel=kept.permute(2, 0, 1, 3).unsqueeze(2),
            given=pair.view(batch, 1, key_heads, heads // key_heads, 2, -1).permute(3, 0, 1, 4, 2, 5),
            rows=pair[:, :reads],
            keys=self.keys[:, newest:-1].mT,
            writes=self.writes[:, newest - 1 :],
            scores=scores,
            own=scores[:, 0, 0].view(batch, 1, heads, 1),
            write=write,
            turned=write.permute(3, 0, 1, 2),
        )
