"""Heads as complex numbers, one for each pair of channels that rotates, and what may be mixed among them.

Rotary positions multiply pair j of every head by e^{i θ_j t}. With z = x₁ + i x₂ for each pair, a score is

    q · k = Re Σ_j q_j conj(k_j) e^{i θ_j (t - s)}

so a complex matrix M over the K key heads of one frequency commutes with the rotation: k' = M k, and the query of a
head that reads head g takes q_j · conj(M⁻¹[g, :]). TransMLA's RoRoPE (arXiv 2502.07864, §4.2) is the case of a real
orthogonal M. Tensors are `[heads, pairs, ...]`, in float64.
"""

import torch
from torch import Tensor


def to_complex(rows: Tensor, interleave: bool) -> Tensor:
    """Rows of heads `[h, d, D]` → `[h, d / 2, D]`, complex."""
    rows = rows.double()
    first, second = (rows[:, 0::2], rows[:, 1::2]) if interleave else rows.chunk(2, dim=1)
    return torch.complex(first.contiguous(), second.contiguous())


def to_rows(pairs: Tensor, interleave: bool) -> Tensor:
    """The inverse: `[h, d / 2, D]` → `[h, d, D]`."""
    if interleave:
        return torch.view_as_real(pairs).movedim(-1, 2).flatten(1, 2)
    return torch.cat((pairs.real, pairs.imag), dim=1)


def pair_moments(pairs: Tensor, moment: Tensor) -> Tensor:
    """E[k kᴴ] over the heads of each frequency, `[d / 2, K, K]`, of projections `[K, d / 2, D]` of x with E[x xᵀ]."""
    rows = pairs.transpose(0, 1)
    return rows @ moment.to(rows.dtype) @ rows.mH


def query_energies(queries: Tensor, moment: Tensor, groups: int) -> Tensor:
    """E|q_j|² of the heads that read each key head, `[d / 2, K]`."""
    energy = torch.einsum("hjd,de,hje->hj", queries, moment.to(queries.dtype), queries.conj()).real
    return energy.unflatten(0, (groups, -1)).mean(1).transpose(0, 1)


def mixing(keys: Tensor, queries: Tensor, moment: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """M and M⁻¹ `[d / 2, K, K]`: the first components of M k are the most of a frequency.

    "rotated": M = Uᴴ W with W = diag(√E|q|²) and U the eigenvectors of W E[k kᴴ] W; "real": U real, W = 1; "plain": M
    takes the heads as they are.
    """
    count = keys.shape[0]
    moments = pair_moments(keys, moment)
    if method == "plain":
        one = torch.eye(count, dtype=moments.dtype).expand_as(moments)
        return one, one
    if method == "real":
        vectors = torch.linalg.eigh(moments.real).eigenvectors.flip(-1).to(moments.dtype)
        return vectors.mH, vectors
    scale = query_energies(queries, moment, count).clamp(min=1e-30).sqrt()
    weighted = scale[:, :, None] * moments * scale[:, None, :]
    vectors = torch.linalg.eigh(weighted).eigenvectors.flip(-1)
    return vectors.mH * scale[:, None, :], vectors / scale[:, :, None]


def as_real_map(factors: Tensor, interleave: bool) -> Tensor:
    """The real map `[m · d, d]` of a query's channels to the parts of q_j · conj(f_{m, j}), for factors
    `[m, d / 2]`; a part is laid out as `to_rows` does."""
    parts, pairs = factors.shape
    identity = to_complex(torch.eye(2 * pairs, dtype=torch.float64)[None], interleave)[0]
    return to_rows(factors.conj()[:, :, None] * identity, interleave).reshape(parts * 2 * pairs, 2 * pairs)
