"""Products with one matrix per head: latent attention's U goes into the query, its V onto the output."""

import torch
import torch.nn.functional as F

from .ops_dispatch import HALF_DTYPES


def per_head(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """states W of each head, `[B, H, T, i]` and `[K, i, o]` → `[B, H, T, o]`; H / K heads in a row share a matrix."""
    batch, heads, length, width = states.shape
    count, out = weight.shape[0], weight.shape[-1]
    in_row = heads // count
    if batch == 1:
        return torch.bmm(states.reshape(count, in_row * length, width), weight).view(1, heads, length, out)
    rows = states.reshape(batch, count, in_row, length, width).transpose(0, 1)
    mapped = torch.bmm(rows.reshape(count, batch * in_row * length, width), weight)
    return mapped.view(count, batch, in_row, length, out).transpose(0, 1).reshape(batch, heads, length, out)


def absorb_query(query: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Uᵀ q of each head: `[B, H, T, n]` and [U; V] `[K, n + v, c]` → `[B, H, T, c]`."""
    key_width = query.shape[-1]
    if copies_slices(maps) and query.shape[0] * query.shape[2] == 1:
        # Twice the products, half the bytes.
        return per_head(F.pad(query, (0, maps.shape[1] - key_width)), maps)
    return per_head(query, maps[:, :key_width])


def up_project_output(context: torch.Tensor, maps: torch.Tensor, value_width: int) -> torch.Tensor:
    """V c of each head: `[B, H, T, c]` and [U; V] `[K, n + v, c]` → `[B, H, T, v]`."""
    if copies_slices(maps) and context.shape[0] * context.shape[2] <= 4:
        return per_head(context, maps.transpose(1, 2))[..., -value_width:]
    return per_head(context, maps[:, -value_width:].transpose(1, 2))


def copies_slices(maps: torch.Tensor) -> bool:
    """Whether a batched product with a slice of `maps` would copy it first: half precision on a CPU."""
    return maps.device.type == "cpu" and maps.dtype in HALF_DTYPES and maps.is_contiguous()
