"""Linear attention whose state is multiplied with several Householder matrices for each token."""

import torch

from .ops_packing import PackedSequences
from .ops_recurrence_product import delta_product
from .recurrent_linear import DeltaAttention
from .recurrent_rows import TokenRows


class DeltaProductAttention(DeltaAttention):
    """S <- Diag(e**g) S, then for each of n writes S <- S + β_j k_j (v_j - Sᵀk_j)ᵀ; o = Sᵀq.

    With n writes a token's transition is a product of n generalised Householder matrices, which can permute and rotate
    what one of them can only reflect. k_proj, v_proj and b_proj are n times as wide, write by write. (DeltaProduct,
    Siems et al. 2025, arXiv 2502.10297, §3; gated with a decay.)
    """

    # A token would fill several slots of those that collect writes.
    can_defer = False

    @property
    def writes(self) -> int:
        return self.settings.num_householder

    def split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, T, C]` → q `[B, T, H', K]`, k `[B, T, n, H', K]`, v `[B, T, n, H, V]`."""
        settings, writes = self.settings, self.writes
        query, key, value = mixed.split([self.key_dim, writes * self.key_dim, writes * self.value_dim], dim=-1)
        query = self.feature_map(query.unflatten(-1, (-1, settings.key_head_dim)))
        key = self.feature_map(key.unflatten(-1, (writes, -1, settings.key_head_dim)))
        return query, key, value.unflatten(-1, (writes, self.heads, settings.value_head_dim))

    def beta(self, hidden_states: torch.Tensor, rows: TokenRows) -> torch.Tensor:
        """The strength of each write, `[B, T, n, H]`, 0 where there is no token."""
        return super().beta(hidden_states, rows).unflatten(-1, (self.writes, self.heads))

    def recurrence(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        beta: torch.Tensor,
        log_decay: torch.Tensor | None,
        state: torch.Tensor | None,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale, normalize = self.settings.multiplier, self.settings.qk_norm == "l2"
        inputs = (query, key, value, beta, log_decay, state)
        return delta_product(*inputs, scale=scale, normalize=normalize, packed=packed)
