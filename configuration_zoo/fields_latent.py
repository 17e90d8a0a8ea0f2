"""Latent attention: keys and values from a small shared latent, and an indexer that selects among them."""

import math
from dataclasses import dataclass

from .field_kinds import Choice, count, flag, length, non_negative, per_layer, positive, size
from .fields_checks import for_each_layer, refuse_unless, require

INDEXER_TYPES = ("full", "shared", "none")
WIDTH_FIELDS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
LATENT_FIELDS = (
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "q_lora_rank",
    "mla_norm_eps",
    "mla_scale_q_lora",
    "mla_scale_kv_lora",
    "scale_attn_by_mscale",
)
INDEX_FIELDS = (
    "index_topk",
    "index_n_heads",
    "index_head_dim",
    "indexer_types",
    "indexer_rope_interleave",
    "indexer_loss_coef",
    "indexer_warmup",
)


@dataclass(kw_only=True, repr=False)
class LatentFields:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1) and the lightning indexer that makes it sparse
    (DeepSeek-V3.2, arXiv 2512.02556, §2.1).

    The first half belongs to attention_type="latent", the second to layers called "indexed_attention".
    """

    # Ranks of what keys and values are made of, which is what the cache holds, and of the queries (None: one full
    # projection). kv_lora_rank: 4 · head_dim when left out (DeepSeek-V2, §2.1.4).
    kv_lora_rank: int | None = size()
    q_lora_rank: int | None = size()
    # Channels of a head: its own part of the key, the part that rotates and that all heads share; the value's are
    # v_head_dim. Left out: head_dim, head_dim / 2 (0 without rope), head_dim, which is hidden_size /
    # num_attention_heads if left out as well (ibid. §2.1.4).
    qk_nope_head_dim: int | None = size()
    qk_rope_head_dim: int | None = count()
    # Epsilon of the two latents' RMS norms, apart from norm_eps.
    mla_norm_eps: float | int | None = positive()
    # Queries · sqrt(hidden_size / q_lora_rank), latents · sqrt(hidden_size / kv_lora_rank) (LongCat-Flash,
    # arXiv 2509.01322).
    mla_scale_q_lora: bool | None = flag(None)
    mla_scale_kv_lora: bool | None = flag(None)
    # Scores · (0.1 · mscale_all_dim · ln(factor) + 1)², for a layer whose rope_parameters have an mscale_all_dim and a
    # rope_type other than default (YaRN, arXiv 2309.00071, §3.4, as DeepSeek applies it).
    scale_attn_by_mscale: bool | None = flag(None)

    # k keys for each query, chosen by index_n_heads small heads of index_head_dim channels.
    index_topk: int | None = length()
    index_n_heads: int | None = size()
    index_head_dim: int | None = size()
    # Per layer: "full" has an indexer, "shared" takes what the last one before it chose (GLM-5, arXiv 2603.12201),
    # "none" for every other layer.
    indexer_types: list[str] | None = per_layer(Choice(INDEXER_TYPES))
    # How the indexer's channels pair up, which need not be rope_interleave.
    indexer_rope_interleave: bool | None = flag(None)
    # Training of the indexer: coefficient of KL(attention ‖ index scores), per token and layer; in warm-up attention is
    # dense and the divergence goes over all keys, afterwards over the selected ones (DeepSeek-V3.2, §2.1.1).
    indexer_loss_coef: float | int | None = non_negative()
    indexer_warmup: bool | None = flag(None)

    def resolve_latent(self):
        if "latent" in self.attentions:
            self._resolve_widths()
        if "indexed_attention" in (self.layer_types or ()):
            self._resolve_indexer()

    def _resolve_widths(self):
        rotates = self.position_embedding_type == "rope"
        width = self.head_dim
        if width is None and None in (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim):
            width = self.even_head_dim()
        width = width or self.qk_nope_head_dim
        for field, default in (
            ("kv_lora_rank", 4 * width),
            ("qk_nope_head_dim", width),
            ("qk_rope_head_dim", max(width // 4 * 2, 2) if rotates else 0),
            ("v_head_dim", width),
            ("mla_norm_eps", 1e-6),
            ("mla_scale_q_lora", False),
            ("mla_scale_kv_lora", False),
            ("scale_attn_by_mscale", rotates),
        ):
            if getattr(self, field) is None:
                setattr(self, field, default)
        if self.head_dim is None and len(self.attentions) > 1:
            self.head_dim = width
        if self.head_dim is None:
            # transformers checks the rotation against it and takes it, in latent attention, for the width that rotates.
            self.head_dim = self.qk_rope_head_dim if rotates and self.qk_rope_head_dim else width

    def _resolve_indexer(self):
        indexed = [word == "indexed_attention" for word in self.layer_types]
        for field, default in (
            ("index_topk", 2048),
            ("index_n_heads", 64),
            ("index_head_dim", 128),
            ("indexer_types", ["full" if is_indexed else "none" for is_indexed in indexed]),
            ("indexer_rope_interleave", False),
            ("indexer_loss_coef", 0.0),
            ("indexer_warmup", False),
        ):
            if getattr(self, field) is None:
                setattr(self, field, default)

    @for_each_layer
    def validate_latent(self):
        latent = "latent" in self.attentions
        refuse_unless(self, latent, "attention_type='latent'", LATENT_FIELDS)
        indexed = "indexed_attention" in self.layer_types
        refuse_unless(self, indexed, "an 'indexed_attention' layer in layer_types", INDEX_FIELDS)
        if latent:
            self._validate_widths()
        if indexed:
            self._validate_indexer()
        words = zip(self.layer_types, self.attention_types, strict=True)
        beside = [word for word, name in words if name == "latent" and word in ("hybrid", "hybrid_sliding")]
        if beside:
            raise ValueError(
                f"layer_types has {beside[0]!r}, whose attention beside a recurrence needs "
                f"attention_type='grouped_query', got {self.attention_type!r}."
            )

    def _validate_widths(self):
        require(self, "attention_type='latent'", (*WIDTH_FIELDS, "mla_norm_eps"))
        rotates = self.position_embedding_type == "rope"
        if rotates and (self.qk_rope_head_dim == 0 or self.qk_rope_head_dim % 2):
            raise ValueError(
                f"qk_rope_head_dim={self.qk_rope_head_dim} must be an even number greater than 0 with "
                "position_embedding_type='rope', and at least 0 without."
            )
        if self.mla_scale_q_lora and self.q_lora_rank is None:
            raise ValueError("mla_scale_q_lora=True needs q_lora_rank, which is not set.")
        if self.scale_attn_by_mscale and not rotates:
            raise ValueError(
                f"scale_attn_by_mscale=True needs position_embedding_type='rope', got {self.position_embedding_type!r}."
            )
        # Norm and clamp act on whole keys, which the cache does not hold.
        grouped = "grouped_query" in self.attentions
        refuse_unless(self, grouped, "attention_type='grouped_query'", ("qk_norm", "clip_qkv"))

    def _validate_indexer(self):
        words = zip(self.layer_types, self.attention_types, strict=False)
        if any(word == "indexed_attention" and mechanism != "latent" for word, mechanism in words):
            raise ValueError(
                "layer_types has 'indexed_attention', which needs attention_type='latent', "
                f"got {self.attention_type!r}."
            )
        if self.position_embedding_type in ("alibi", "relative"):
            # Only the distance tells equal tokens apart then, and their scores differ by rounding alone: a step and a
            # whole would choose different ones of them.
            raise ValueError(
                f"layer_types has 'indexed_attention', whose indexer cannot see the distances of "
                f"position_embedding_type={self.position_embedding_type!r}: use one of "
                "'rope', 'learned', 'sinusoidal' or 'none'."
            )
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim={self.index_head_dim} must be at least qk_rope_head_dim={self.qk_rope_head_dim}: "
                "the same rotation turns its first channels."
            )
        source = None
        for index, (word, kind) in enumerate(zip(self.layer_types, self.indexer_types, strict=True)):
            if (word == "indexed_attention") != (kind != "none"):
                raise ValueError(
                    f"indexer_types[{index}]={kind!r} does not go with layer_types[{index}]={word!r}: an "
                    "'indexed_attention' layer is 'full' or 'shared', every other layer 'none'."
                )
            source = index if kind == "full" else source
            if kind == "shared" and source is None:
                raise ValueError(f"indexer_types[{index}]='shared' needs a 'full' layer before it.")

    @property
    def qk_head_dim(self) -> int | None:
        """Channels of a query or key where they differ from head_dim, else None: the name under which transformers asks
        whether a cache can be laid out from head_dim alone."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if "latent" in self.attentions else None

    def indexer_of(self, layer_idx: int) -> int:
        """The layer whose indexer chooses for layer `layer_idx`: itself, or the last "full" one before it."""
        return max(index for index in range(layer_idx + 1) if self.indexer_types[index] == "full")

    def mscale_factor(self, layer_idx: int) -> float:
        """The factor on the scores that comes from the scaling of the rotation of layer `layer_idx`."""
        name = self.rope_table_of(layer_idx)
        table = self.rope_tables[name] if name is not None else {}
        scaled = self.scale_attn_by_mscale and table.get("rope_type", "default") != "default"
        strength = table.get("mscale_all_dim") if scaled else None
        if not strength or table["factor"] <= 1:
            return 1.0
        return (0.1 * strength * math.log(table["factor"]) + 1.0) ** 2
