"""Attention with queries of many heads out of one shared latent, and one head of keys and values."""

from torch import nn

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .norms import RMSNorm


class MatrixFactorizationAttention(GroupedQueryAttention):
    """Grouped-query attention with q_h = Q_h norm(S x): a shared S `[r, D]`, then a matrix `[d, r]` for each head.

        x [B, T, D] → q_a_proj → norm → q_b_proj   [B, T, H, d]
          └→ k_proj, v_proj                        [B, T, K, d], K = 1 in the papers: what is cached

    Scores of head h are x S Q_hᵀ k: many wide heads at the cache of one. (Multi-matrix factorization attention, Hu et
    al. 2024, arXiv 2412.19255; with a norm of the latent as in Step-3, arXiv 2507.19427.)
    """

    def build_queries(self, config: ZooConfig, width: int) -> None:
        rank = config.attention_factors["query_rank"]
        self.q_a_proj = nn.Linear(config.hidden_size, rank, bias=config.attention_bias)
        self.q_a_layernorm = RMSNorm(rank, config.norm_eps) if config.attention_factors["query_norm"] else nn.Identity()
        self.q_b_proj = nn.Linear(rank, width, bias=config.attention_bias)
