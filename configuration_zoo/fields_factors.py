"""Queries, keys and values that are products of factors, and keys that are tied to values."""

from dataclasses import dataclass

from .field_kinds import flag, settings, size
from .fields_checks import for_each_layer
from .fields_position import NO_SCALING, ROPE_KEYS
from .vocabulary import COMPOSED_ATTENTIONS, FACTORED_ATTENTIONS

# Fields that act on whole keys or on whole projections, which these attentions do not have.
WHOLE_FIELDS = ("qk_norm", "num_kv_shared_layers")
RANKS = ("query_rank", "key_rank", "value_rank")


@dataclass(kw_only=True, repr=False)
class FactorFields:
    """Multi-matrix factorization attention (Hu et al. 2024, arXiv 2412.19255), tensor product attention (Zhang et al.
    2025, arXiv 2501.06425) and grouped-tied attention (Zadouri et al. 2025, arXiv 2505.21487)."""

    attention_factors: dict | None = settings(
        "Ranks of the factors that queries, keys and values are made of.",
        query_rank=size(
            needs="factors",
            meaning="Rank of the queries: channels of the latent that all heads share with attention_type "
            "'multi_matrix_factorization', products that are averaged with 'tensor_product'. None: 8 · head_dim; 6.",
            source="Step-3, arXiv 2507.19427; Zhang et al. 2025, arXiv 2501.06425",
        ),
        query_norm=flag(
            None,
            needs="latent query",
            meaning="The latent of the queries passes an RMS norm. None: yes.",
            source="Step-3's published code (yes)",
        ),
        key_rank=size(
            needs="key factors",
            meaning="Products that are averaged to the keys. None: 2.",
            source="Zhang et al. 2025, arXiv 2501.06425",
        ),
        value_rank=size(
            needs="key factors",
            meaning="Products that are averaged to the values. None: 2.",
            source="Zhang et al. 2025, arXiv 2501.06425",
        ),
    )

    def resolve_factors(self) -> None:
        alone = self.attentions == {"grouped_tied"}
        if alone and self.rope_parameters is None and self.position_embedding_type == "rope":
            self.rope_parameters = {**NO_SCALING, "partial_rotary_factor": 0.5}
        named = self.attentions & {*FACTORED_ATTENTIONS}
        if not named:
            return
        products = "tensor_product" in named
        defaults = {"query_rank": 6 if products else 8 * self.head_dim}
        defaults |= {"query_norm": True} if "multi_matrix_factorization" in named else {}
        defaults |= {"key_rank": 2, "value_rank": 2} if products else {}
        given = {key: value for key, value in self.attention_factors.items() if value is not None}
        self.attention_factors = defaults | given

    @for_each_layer
    def validate_factors(self) -> None:
        names = self.attentions & {*COMPOSED_ATTENTIONS}
        for field in WHOLE_FIELDS if names else ():
            if getattr(self, field):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} needs keys per head in the cache, which "
                    f"attention_type={min(names)!r} does not keep: leave it out."
                )
        for field in ROPE_KEYS if names else ():
            if getattr(self, field) not in (None, "first"):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} cannot be combined with attention_type={min(names)!r}, which "
                    "keeps what keys rotate apart from what their values are: leave it out."
                )
        if self.mla_config["query_rank"] is not None and self.attentions & {*FACTORED_ATTENTIONS}:
            raise ValueError(
                f"mla_config.query_rank={self.mla_config['query_rank']} cannot be combined with attention_type="
                f"{min(self.attentions & {*FACTORED_ATTENTIONS})!r}, whose queries have attention_factors.query_rank."
            )
        if "tensor_product" in names and self.attn_output_gate == "query":
            raise ValueError(
                "attn_output_gate='query' needs a projection to whole queries, which attention_type='tensor_product' "
                "does not have: use 'elementwise'."
            )
        for index in self.softmax_layers if "grouped_tied" in names else ():
            if self.attention_types[index] == "grouped_tied":
                self._validate_tied(index)

    def _validate_tied(self, index):
        table = self.rope_tables.get(self.rope_table_of(index), {})
        rotated = self.tied_rope_width(index)
        if table.get("rope_type") == "proportional" or rotated >= self.head_dim:
            raise ValueError(
                f"attention_type='grouped_tied' ties the channels of a key that do not rotate, but all {self.head_dim} "
                "of head_dim do: rope_parameters needs a rope_type other than 'proportional' and a "
                "partial_rotary_factor below 1, 0.5 in the paper."
            )
        if self.value_width < self.head_dim - rotated:
            raise ValueError(
                f"attention_type='grouped_tied' takes {self.head_dim - rotated} channels of each key from the values, "
                f"but v_head_dim={self.v_head_dim}: make it at least as wide."
            )

    def has_factors(self, layer_idx: int, of_keys: bool = False) -> bool:
        """Whether layer `layer_idx` makes its queries, or also keys and values, of factors."""
        names = ("tensor_product",) if of_keys else FACTORED_ATTENTIONS
        return layer_idx in self.softmax_layers and self.attention_types[layer_idx] in names

    def tied_rope_width(self, layer_idx: int) -> int:
        """Channels of a head that rotate in layer `layer_idx`, which grouped-tied attention keeps apart."""
        table = self.rope_tables.get(self.rope_table_of(layer_idx))
        width = 0 if table is None else int(self.head_dim * table.get("partial_rotary_factor", 1.0))
        return width + width % 2
