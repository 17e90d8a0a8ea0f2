"""Delta rules that write several keys and values for each token (DeltaProduct, Siems et al. 2025, arXiv 2502.10297)."""

import torch
import torch.nn.functional as F

from .ops_packing import PackedSequences
from .ops_recurrence import delta_rule


def delta_product(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    packed: PackedSequences | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- Diag(e**g) S, then n times S <- S + β_j k_j (v_j - Sᵀk_j)ᵀ; o = scale · Sᵀq.

    A product of n generalised Householder matrices I - β_j k_j k_jᵀ for each token. query `[B, L, H', K]`, key
    `[B, L, n, H', K]`, value `[B, L, n, H, V]`, beta `[B, L, n, H]`; log_decay and state as for `delta_rule`. It is
    that rule over L · n tokens, the first of each n with the decay, the last with the query.
    """
    batch, length, count = key.shape[:3]
    options = {"scale": scale, "normalize": normalize}
    if length == 1 and state is not None:
        for step in range(count):
            writes = (part[:, :, step] for part in (key, value, beta))
            output, state = delta_rule(query, *writes, log_decay if step == 0 else None, state, **options)
        return output, state
    query = query.unsqueeze(2).expand(-1, -1, count, -1, -1).flatten(1, 2)
    if log_decay is not None:
        rest = (0, 0) * (log_decay.dim() - 2)
        log_decay = F.pad(log_decay.unsqueeze(2), (*rest, 0, count - 1)).flatten(1, 2)
    writes = (part.flatten(1, 2) for part in (key, value, beta))
    output, state = delta_rule(query, *writes, log_decay, state, packed=repeated(packed, count), **options)
    return output[:, count - 1 :: count], state


def repeated(packed: PackedSequences | None, count: int) -> PackedSequences | None:
    """The same sequences where each token stands `count` times in a row."""
    if packed is None:
        return None
    first = torch.arange(count, device=packed.starts.device) == 0
    places = packed.places.unsqueeze(-1) * count + torch.arange(count, device=packed.starts.device)
    cu_seqlens = None if packed.cu_seqlens is None else packed.cu_seqlens * count
    return PackedSequences((packed.starts.unsqueeze(-1) & first).flatten(1), places.flatten(1), cu_seqlens)
