"""Operations that only reorder rows inside a tensor: rotary layouts, interleaved gates."""

import torch
from torch import Tensor

from .ops import Context, EachOp, Size


class Permutation(EachOp):
    """`ours = theirs[order]` along `dim`; a subclass defines `order(rows, ctx)`, a permutation of range(rows)."""

    dim: int = 0

    def order(self, rows: int, ctx: Context) -> Tensor:
        raise NotImplementedError

    def _take(self, tensor, order):
        return tensor.index_select(self.dim, order.to(tensor.device))

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        return self._take(tensor, self.order(tensor.shape[self.dim], ctx))

    def to_theirs(self, tensor: Tensor, ctx: Context) -> Tensor:
        return self._take(tensor, self.order(tensor.shape[self.dim], ctx).argsort())


class Deinterleave(Permutation):
    """Pairs to halves: `g0 u0 g1 u1 ...` to `g0 g1 ... u0 u1 ...` (`n` > 2: n interleaved parts)."""

    def __init__(self, n: int = 2, dim: int = 0):
        self.n, self.dim = n, dim
        self.by_entry = dim > 0

    def order(self, rows: int, ctx: Context) -> Tensor:
        """Raises ValueError for rows that are not `n` interleaved parts."""
        if rows % self.n:
            raise ValueError(f"{rows} rows are not {self.n} interleaved parts")
        return torch.arange(rows).view(-1, self.n).t().flatten()


class HeadPermutation(Permutation):
    """The same permutation of the channels of every head: `rows = heads * head_dim`, any number of heads.

    The number of heads is counted from the tensor, so one operation serves queries, keys and a `[head_dim]` norm.
    """

    def __init__(self, head_dim: Size = "head_dim", dim: int = 0):
        self.head_dim, self.dim = head_dim, dim

    def channels(self, head_dim: int, ctx: Context) -> Tensor:
        raise NotImplementedError

    def order(self, rows: int, ctx: Context) -> Tensor:
        """Raises ValueError for rows that are not whole heads."""
        head_dim = ctx.size(self.head_dim)
        if rows % head_dim:
            raise ValueError(f"{rows} rows are not whole heads of {head_dim}")
        heads = torch.arange(rows // head_dim).unsqueeze(1) * head_dim
        return (heads + self.channels(head_dim, ctx)).flatten()


class PermuteRope(HeadPermutation):
    """Interleaved rotary pairs (2j, 2j+1) to half-split pairs (j, j + rotary / 2), inside every head.

    `rotary` is the number of rotated channels (default: from `partial_rotary_factor`), `start` the first of them.
    """

    def __init__(self, rotary: Size | None = None, head_dim: Size = "head_dim", start: Size = 0, dim: int = 0):
        super().__init__(head_dim, dim)
        self.rotary, self.start = rotary, start

    def channels(self, head_dim: int, ctx: Context) -> Tensor:
        rotary = rotary_channels(head_dim, ctx) if self.rotary is None else ctx.size(self.rotary)
        start, order = ctx.size(self.start), torch.arange(head_dim)
        order[start : start + rotary] = order[start : start + rotary].view(-1, 2).t().flatten()
        return order


class SwapHalves(HeadPermutation):
    """Second half of every head first: turns rotation by a negative angle into the ordinary half-split one."""

    def channels(self, head_dim: int, ctx: Context) -> Tensor:
        return torch.arange(head_dim).roll(head_dim // 2)


def rotary_channels(head_dim: int, ctx: Context) -> int:
    """How many channels of a head this layer rotates."""
    rope = getattr(ctx.settings, "rope_parameters", None) or {}
    rope = rope.get(ctx.layer_entry(), rope) or {}
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))
