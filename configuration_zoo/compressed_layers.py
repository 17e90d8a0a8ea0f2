"""Ranks of projections, and layers that keep entries for windows of tokens: what is derived and what is refused."""

from .fields_checks import refuse_unless
from .vocabulary import COMPRESSED_LAYERS, COMPRESSED_SPARSE, HEAVILY_COMPRESSED, PER_HEAD_ATTENTIONS, POSITION_BIASES

QUERY_RANK_FIELDS, OUTPUT_RANK_FIELDS = ("mla_config.query_rank",), ("mla_config.output_groups",)
COMPRESS_RATES = {
    COMPRESSED_SPARSE: ("mla_config.compressed_sparse_rate", 4),
    HEAVILY_COMPRESSED: ("mla_config.heavily_compressed_rate", 128),
}


class CompressedLayers:
    """What `mla_config` says of projections through a rank and of compressed attention (DeepSeek-V4, §2.3)."""

    def _resolve_compression(self):
        if self.mla_config["output_rank"] is not None and self.mla_config["output_groups"] is None:
            setattr(self, "mla_config.output_groups", 1)
        for layer_type, (field, default) in COMPRESS_RATES.items():
            if layer_type in self.layer_types and getattr(self, field) is None:
                setattr(self, field, default)

    def _validate_ranks(self):
        per_head = bool(self.attentions & {*PER_HEAD_ATTENTIONS})
        refuse_unless(self, per_head, f"an attention_type of {list(PER_HEAD_ATTENTIONS)}", QUERY_RANK_FIELDS)
        rank, groups = self.mla_config["output_rank"], self.mla_config["output_groups"]
        refuse_unless(self, rank is not None, "mla_config.output_rank", OUTPUT_RANK_FIELDS)
        if rank is not None and self.num_attention_heads % groups:
            raise ValueError(
                f"mla_config.output_groups={groups} must divide num_attention_heads={self.num_attention_heads}."
            )

    def _validate_compression(self):
        for layer_type, (field, _) in COMPRESS_RATES.items():
            refuse_unless(self, layer_type in self.layer_types, f"a {layer_type!r} layer in layer_types", (field,))
        used = [layer_type for layer_type in COMPRESSED_LAYERS if layer_type in self.layer_types]
        if not used:
            return
        pairs = zip(self.layer_types, self.attention_types, strict=False)
        if any(layer_type in used and mechanism != "grouped_query" for layer_type, mechanism in pairs):
            raise ValueError(
                f"layer_types has {used[0]!r}, which needs attention_type='grouped_query', got {self.attention_type!r}."
            )
        rotates = self.position_embedding_type == "rope"
        if not self.attention_k_eq_v or (rotates and not self.position_config["rope_values"]):
            raise ValueError(
                f"layer_types has {used[0]!r}, whose entries are keys and values at once: set attention_k_eq_v=True"
                " and, with rope, position_config.rope_values=True."
            )
        for field, value in (("use_bidirectional_attention", False), ("value_norm", False), ("clip_qkv", None)):
            if getattr(self, field) != value:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} cannot be combined with {used[0]!r} in layer_types, whose "
                    "entries it would not reach."
                )
        if self.position_embedding_type in POSITION_BIASES:
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} cannot be combined with {used[0]!r} in "
                "layer_types: an entry stands for many positions. Use 'rope', 'learned', 'sinusoidal' or 'none'."
            )
        self._validate_entries(used)

    def _validate_entries(self, used):
        for layer_idx, layer_type in enumerate(self.layer_types if COMPRESSED_SPARSE in used else ()):
            table = self.rope_tables.get(self.rope_table_of(layer_idx))
            partial = (table or {}).get("partial_rotary_factor", 1.0)
            turning = int(self.head_dim * partial) if table else 0
            if layer_type == COMPRESSED_SPARSE and self.index_head_dim < turning:
                raise ValueError(
                    f"index_head_dim={self.index_head_dim} must be at least {turning}, the channels of a head that "
                    "rotate: the same rotation turns those of the indexer."
                )

    @property
    def compress_rates(self) -> dict[str, int]:
        """How many tokens become one entry, by the type of the layer, as transformers' caches ask for it."""
        return {name: getattr(self, field) or rate for name, (field, rate) in COMPRESS_RATES.items()}
