"""The rotation of channels by an angle, pair by pair: (a, b) → (a cos - b sin, b cos + a sin).

Two layouts of the pairs are in use: channel j with j + r/2, the halves of a head (GPT-NeoX, Llama), and channel 2j with
2j + 1, interleaved (GPT-J). They are the same up to a permutation of the rows of the query and key projections, which
is why published code mixes them up so easily.
"""

from typing import NamedTuple

import torch

from .ops_dispatch import is_traced


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(x1, x2) → (-x2, x1) for the two halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    """(x0, x1, x2, x3, ...) → (-x1, x0, -x3, x2, ...) along the last dimension."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def repeat_half(angles: torch.Tensor) -> torch.Tensor:
    """`[..., r / 2]` → `[..., r]`: each angle at both channels of its pair, (t1, t2) → (t1, t2, t1, t2)."""
    return torch.cat((angles, angles), dim=-1)


def repeat_pairs(angles: torch.Tensor) -> torch.Tensor:
    """`[..., r / 2]` → `[..., r]`: each angle at both channels of its pair, (t1, t2) → (t1, t1, t2, t2)."""
    return angles.repeat_interleave(2, dim=-1)


def swap_half(x: torch.Tensor) -> torch.Tensor:
    """(x1, x2) → (x2, x1) for the two halves of the last dimension."""
    return x.roll(x.shape[-1] // 2, -1)


def swap_pairs(x: torch.Tensor) -> torch.Tensor:
    """(x0, x1, x2, x3, ...) → (x1, x0, x3, x2, ...) along the last dimension."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


# By the flag `interleave`. The partner of each channel with its sign, the angles of a row of pairs, and the partner
# without its sign.
ROTATE = {False: rotate_half, True: rotate_pairs}
REPEAT = {False: repeat_half, True: repeat_pairs}
SWAP = {False: swap_half, True: swap_pairs}


class RotaryTables(NamedTuple):
    """cos and sin `[B, T, r]` of one call, and both as every layer would make them: `[B, T, 1, r]` for all heads, the
    sine with the sign of its channel's partner."""

    cos: torch.Tensor
    sin: torch.Tensor
    head_cos: torch.Tensor
    signed_sin: torch.Tensor


def apply_rotary(
    x: torch.Tensor,
    tables: tuple[torch.Tensor, ...],
    interleave: bool = False,
    upcast: bool = False,
    whole: bool = False,
    trailing: bool = False,
) -> torch.Tensor:
    """x cos + rotate(x) sin for the first r ≤ d channels of `x` `[B, T, H, d]`, with `trailing` for the last; the
    others pass through.

    `tables` are cos and sin `[B, T, r]`, or `RotaryTables` of the same layout: x cos + swap(x) (± sin), the same
    products and sums. With `upcast` the products are taken in float32; the result has the dtype of `x`. `whole` says
    that r = d, for a caller that traces without sizes.
    """
    if type(tables) is RotaryTables:
        partner, cos, sin = SWAP[interleave], tables.head_cos, tables.signed_sin
    else:
        partner, cos, sin = ROTATE[interleave], tables[0].unsqueeze(2), tables[1].unsqueeze(2)
    width = cos.shape[-1]
    rotary, rest = (x, None) if whole or width == x.shape[-1] else (x[..., :width], x[..., width:])
    if trailing and rest is not None:
        rest, rotary = x[..., :-width], x[..., -width:]
    if upcast:
        rotary = rotary.float()
    # No branch on a dtype: vLLM reads attention from a symbolic trace, which a question to a tensor ends.
    rotated = (rotary * cos + partner(rotary) * sin).to(x.dtype)
    if rest is None:
        return rotated
    return torch.cat((rest, rotated) if trailing else (rotated, rest), dim=-1)


def backwards(tables: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Tables of the rotation that undoes the one of `tables`."""
    if type(tables) is RotaryTables:
        return RotaryTables(tables.cos, -tables.sin, tables.head_cos, -tables.signed_sin)
    return tables[0], -tables[1]


def share_tables(cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> tuple[torch.Tensor, ...]:
    """What the layers of one call are given: `RotaryTables` in inference, else the plain pair (cos, sin)."""
    if is_traced() or torch.is_grad_enabled():
        return cos, sin
    signed_sin = ROTATE[interleave](SWAP[interleave](sin))
    return RotaryTables(cos, sin, cos.unsqueeze(2), signed_sin.unsqueeze(2))
