"""Indexers that choose blocks of keys for grouped queries: what is refused."""

from .fields_position import ROPE_KEYS
from .vocabulary import INDEXED


class BlockIndexers:
    """What `indexer` says of blocks (MiniMax-M3, MiniMax 2026)."""

    def _validate_blocks(self, in_blocks):
        size, local = self.indexer["block_size"], self.indexer["local_blocks"]
        if not in_blocks and size > 1:
            raise ValueError(
                f"indexer.block_size={size} needs attention_type='grouped_query': the indexer of 'latent' chooses "
                "single keys."
            )
        if in_blocks and any(getattr(self, field) not in (None, "first") for field in ROPE_KEYS):
            raise ValueError(
                "position_config.rope_channels and rope_values cannot be combined with attention_type='grouped_query' "
                "in 'indexed_attention' layers: leave them out."
            )
        if self.index_topk % size:
            raise ValueError(f"index_topk={self.index_topk} must be a multiple of indexer.block_size={size}.")
        if (local is not None) != in_blocks or (in_blocks and local * size > self.index_topk):
            raise ValueError(
                f"indexer.local_blocks={local} must be at most index_topk / indexer.block_size = "
                f"{self.index_topk // size} with attention_type='grouped_query', else None."
            )
        if in_blocks and self.num_key_value_heads % self.index_n_heads:
            raise ValueError(
                f"index_n_heads={self.index_n_heads} must divide num_key_value_heads={self.num_key_value_heads}: each "
                "head of the indexer chooses for a group of them."
            )
        if in_blocks and self.indexer["rope_interleave"] is not None:
            raise ValueError(
                f"indexer.rope_interleave={self.indexer['rope_interleave']} only means something with "
                "attention_type='latent': an indexer of 'grouped_query' turns as rope_interleave says."
            )
        if size > 1 and self.indexer_loss_coef:
            raise ValueError(
                f"indexer_loss_coef={self.indexer_loss_coef} teaches an indexer of single keys: leave it out with "
                f"indexer.block_size={size}."
            )

    @property
    def attentions_with_indexer(self) -> set[str | None]:
        """The distinct mechanisms of the indexed layers."""
        pairs = zip(self.layer_types, self.attention_types, strict=False)
        return {mechanism for layer_type, mechanism in pairs if layer_type == INDEXED}
