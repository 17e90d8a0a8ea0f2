"""Latent attention: keys and values from a small shared latent, and an indexer that selects among them."""

import math
from dataclasses import dataclass

from .block_indexers import BlockIndexers
from .compressed_layers import CompressedLayers
from .field_kinds import Choice, count, flag, length, non_negative, per_layer, positive, settings, size
from .fields_checks import for_each_layer, refuse_unless, require
from .vocabulary import COMPRESSED_SPARSE, HYBRID_LAYERS, INDEXED, INDEXER_TYPES, POSITION_BIASES

WIDTH_FIELDS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
LATENT_FIELDS = (
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "q_lora_rank",
    "mla_config.norm_eps",
    "mla_config.scale_q_lora",
    "mla_config.scale_kv_lora",
    "mla_config.scale_by_mscale",
    "mla_config.norm",
    "mla_config.query_bias",
    "mla_config.raw_query_latent",
    "mla_config.rope_key_norm",
    "mla_config.rope_heads",
)
INDEX_FIELDS = (
    "index_topk",
    "index_n_heads",
    "index_head_dim",
    "indexer_types",
    "indexer.rope_interleave",
    "indexer.norm_eps",
    "indexer.block_size",
    "indexer.local_blocks",
    "indexer_loss_coef",
    "indexer.warmup",
)


@dataclass(kw_only=True, repr=False)
class LatentFields(BlockIndexers, CompressedLayers):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1) and the lightning indexer that makes it sparse
    (DeepSeek-V3.2, arXiv 2512.02556, §2.1).

    The first half belongs to attention_type="latent", the second to layers called "indexed_attention".
    """

    kv_lora_rank: int | None = size(
        needs="latent",
        meaning="Rank of the latent that keys and values are made of, which is what the cache holds. None: 4 · "
        "head_dim.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.1",
    )
    q_lora_rank: int | None = size(
        needs="latent",
        meaning="Rank of the latent that queries are made of. None: one full projection.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.1.2",
    )
    qk_nope_head_dim: int | None = count(
        needs="latent",
        meaning="Channels of a head's query and key that do not rotate. None: head_dim, or hidden_size / "
        "num_attention_heads.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.1.3",
    )
    qk_rope_head_dim: int | None = count(
        needs="latent",
        meaning="Channels of a head's query that rotate, and of the rotated key that all heads share. None: half of "
        "head_dim, 0 without rope.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.1.3",
    )
    mla_config: dict | None = settings(
        "Details of latent attention, and of other projections through a rank, key by key.",
        norm_eps=positive(
            needs="latent",
            meaning="Epsilon of the RMS norms of the two latents, apart from norm_eps. None: 1e-6.",
            source="DeepSeek-V2's published code",
        ),
        scale_q_lora=flag(
            None,
            needs="latent",
            meaning="Queries are multiplied by sqrt(hidden_size / q_lora_rank).",
            source="LongCat-Flash, arXiv 2509.01322, §2.2",
        ),
        scale_kv_lora=flag(
            None,
            needs="latent",
            meaning="The latent of keys and values is multiplied by sqrt(hidden_size / kv_lora_rank).",
            source="LongCat-Flash, arXiv 2509.01322, §2.2",
        ),
        scale_by_mscale=flag(
            None,
            needs="latent",
            meaning="Scores are multiplied by (0.1 · mscale_all_dim · ln(factor) + 1)², in a layer whose "
            "rope_parameters have an mscale_all_dim and a rope_type other than default. None: yes, with rope.",
            source="YaRN, arXiv 2309.00071, §3.4, as DeepSeek-V2 applies it",
        ),
        norm=flag(
            None,
            needs="latent",
            meaning="The two latents pass an RMS norm. None: yes.",
            source="DeepSeek-V2's published code (yes); grouped-query attention as latent attention has none",
        ),
        query_bias=flag(
            None,
            needs="latent",
            meaning="The last projection to the queries has a bias. None: no.",
            source="own to zoo, for models whose queries have one (Qwen2, arXiv 2407.10671)",
        ),
        raw_query_latent=flag(
            None,
            needs="latent",
            meaning="Queries, and a gate beside them, are projected from their latent behind its norm and in front of "
            "it, one next to the other. None: no.",
            source="A.X K2 (SK Telecom 2026)",
        ),
        rope_key_norm=flag(
            None,
            needs="latent",
            meaning="The key that all heads share passes an RMS norm before it is rotated, queries do not. None: no.",
            source="dots3 (dots.llm 2026)",
        ),
        rope_heads=size(
            needs="latent",
            meaning="Heads of the rotated key: its qk_rope_head_dim channels, and those of a query that read them, are "
            "rotated and normalised (qk_norm) in so many groups, each as a head of its own. None: 1.",
            source="own to zoo: all key heads of a layer as the one rotated key, after TransMLA, arXiv 2502.07864",
        ),
        query_rank=size(
            needs="softmax",
            meaning="In attention with keys and values per head, queries are projected through so many channels, "
            "normed. None: one full projection.",
            source="DeepSeek-V2, arXiv 2405.04434, §2.1.2, here without a latent of keys; DeepSeek-V4",
        ),
        output_rank=size(
            needs="softmax",
            meaning="The output of attention is projected through so many channels of each of output_groups groups of "
            "heads, then mixed. None: one full projection.",
            source="DeepSeek-V4 (DeepSeek 2026), §2.3.1 (grouped output projection)",
        ),
        output_groups=size(
            needs="mla_config.output_rank",
            meaning="In how many groups of heads the output goes through its rank. None: 1.",
            source="DeepSeek-V4 (DeepSeek 2026), §2.3.1",
        ),
        compressed_sparse_rate=length(
            needs="compressed sparse layer",
            meaning="How many tokens, behind as many of the window before, become one entry of a "
            "compressed_sparse_attention layer. None: 4.",
            source="DeepSeek-V4 (DeepSeek 2026), §2.3.1",
        ),
        heavily_compressed_rate=length(
            needs="heavily compressed layer",
            meaning="How many tokens become one entry of a heavily_compressed_attention layer. None: 128.",
            source="DeepSeek-V4 (DeepSeek 2026), §2.3.2",
        ),
    )

    index_topk: int | None = length(
        needs="selecting layer",
        meaning="How many keys the indexer chooses for each query. None: 2048.",
        source="DeepSeek-V3.2, arXiv 2512.02556, §2.1",
    )
    index_n_heads: int | None = size(
        needs="selecting layer",
        meaning="Heads of the indexer. None: 64.",
        source="DeepSeek-V3.2, arXiv 2512.02556, §2.1",
    )
    index_head_dim: int | None = size(
        needs="selecting layer",
        meaning="Channels of a head of the indexer. None: 128.",
        source="DeepSeek-V3.2, arXiv 2512.02556, §2.1",
    )
    indexer_types: list[str] | None = per_layer(
        Choice(INDEXER_TYPES),
        needs="indexed layer",
        meaning='For each layer: "full" has an indexer, "shared" takes what the last one before it chose, "none" is '
        'every other layer. None: "full" in every indexed layer.',
        source="GLM-5, arXiv 2603.12201",
    )
    indexer_loss_coef: float | int | None = non_negative(
        needs="indexed layer",
        meaning="Factor on KL(attention ‖ index scores), per token and layer, in the loss. None: 0.",
        source="DeepSeek-V3.2, arXiv 2512.02556, §2.1.1",
    )
    indexer: dict | None = settings(
        "Details of the indexer, key by key.",
        rope_interleave=flag(
            None,
            needs="indexed layer",
            meaning="Neighbouring channels of the indexer rotate together, which need not be what the model's "
            "rope_interleave says.",
            source="DeepSeek-V3.2's published code",
        ),
        norm_eps=positive(
            needs="indexed layer",
            meaning="Epsilon of the norm on the indexer's keys. None: mla_config.norm_eps.",
            source="Hy4 (Tencent 2026)",
        ),
        block_size=size(
            needs="indexed layer",
            meaning="With attention_type 'grouped_query', keys are chosen in blocks of so many neighbours, counted "
            "from the first token of a sequence: index_topk / block_size for a query, by the best key of each. None: "
            "128, with 'latent' 1.",
            source="MiniMax-M3 (MiniMax 2026)",
        ),
        local_blocks=count(
            needs="indexed layer",
            meaning="With attention_type 'grouped_query', so many blocks up to that of the query are always among "
            "those chosen. None: 1.",
            source="MiniMax-M3 (MiniMax 2026)",
        ),
        warmup=flag(
            None,
            needs="indexed layer",
            meaning="Attention is dense and the divergence goes over all keys, instead of over the selected ones.",
            source="DeepSeek-V3.2, arXiv 2512.02556, §2.1.1",
        ),
    )

    def resolve_latent(self) -> None:
        if "latent" in self.attentions:
            self._resolve_widths()
        if INDEXED in self.layer_types or COMPRESSED_SPARSE in self.layer_types:
            self._resolve_indexer()
        self._resolve_compression()

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
            ("mla_config.norm_eps", 1e-6),
            ("mla_config.scale_q_lora", False),
            ("mla_config.scale_kv_lora", False),
            ("mla_config.scale_by_mscale", rotates),
            ("mla_config.norm", True),
            ("mla_config.query_bias", False),
            ("mla_config.raw_query_latent", False),
            ("mla_config.rope_key_norm", False),
            ("mla_config.rope_heads", 1),
        ):
            if getattr(self, field) is None:
                setattr(self, field, default)
        if self.head_dim is None and len(self.attentions) > 1:
            self.head_dim = width
        if self.head_dim is None:
            # transformers checks the rotation against it and takes it, in latent attention, for the width that rotates.
            self.head_dim = self.qk_rope_head_dim if rotates and self.qk_rope_head_dim else width

    def _resolve_indexer(self):
        indexed = [layer_type == INDEXED for layer_type in self.layer_types]
        in_blocks = self.attentions_with_indexer == {"grouped_query"}
        for field, default in (
            ("index_topk", 2048),
            ("index_n_heads", 1 if in_blocks else 64),
            ("index_head_dim", 128),
        ):
            if getattr(self, field) is None:
                setattr(self, field, default)
        for field, default in (
            ()
            if not any(indexed)
            else (
                ("indexer_types", ["full" if is_indexed else "none" for is_indexed in indexed]),
                ("indexer.rope_interleave", None if in_blocks else False),
                ("indexer.block_size", 128 if in_blocks else 1),
                ("indexer.local_blocks", 1 if in_blocks else None),
                ("indexer_loss_coef", 0.0),
                ("indexer.warmup", False),
            )
        ):
            if getattr(self, field) is None:
                setattr(self, field, default)

    @for_each_layer
    def validate_latent(self) -> None:
        latent = "latent" in self.attentions
        refuse_unless(self, latent, "attention_type='latent'", LATENT_FIELDS)
        indexed, selecting = INDEXED in self.layer_types, COMPRESSED_SPARSE in self.layer_types
        refuse_unless(self, indexed, "an 'indexed_attention' layer in layer_types", INDEX_FIELDS[3:])
        reason = f"a layer of layer_types that is one of {[INDEXED, COMPRESSED_SPARSE]}"
        refuse_unless(self, indexed or selecting, reason, INDEX_FIELDS[:3])
        self._validate_ranks()
        self._validate_compression()
        if latent:
            self._validate_widths()
        if indexed:
            self._validate_indexer()
        pairs = zip(self.layer_types, self.attention_types, strict=True)
        beside = [
            layer_type
            for layer_type, name in pairs
            if name not in (None, "grouped_query") and layer_type in HYBRID_LAYERS
        ]
        if beside:
            raise ValueError(
                f"layer_types has {beside[0]!r}, whose attention beside a recurrence needs "
                f"attention_type='grouped_query', got {self.attention_type!r}."
            )

    def _validate_widths(self):
        require(self, "attention_type='latent'", (*WIDTH_FIELDS, "mla_config.norm_eps"))
        rotates = self.position_embedding_type == "rope"
        if rotates and (self.qk_rope_head_dim == 0 or self.qk_rope_head_dim % 2):
            raise ValueError(
                f"qk_rope_head_dim={self.qk_rope_head_dim} must be an even number greater than 0 with "
                "position_embedding_type='rope', and at least 0 without."
            )
        if self.qk_nope_head_dim + self.qk_rope_head_dim == 0:
            raise ValueError("qk_nope_head_dim=0 and qk_rope_head_dim=0 leave queries and keys without a channel.")
        rest = self.qk_rope_head_dim % self.mla_config["rope_heads"]
        if rest or (rotates and self.rope_head_width % 2):
            raise ValueError(
                f"mla_config.rope_heads={self.mla_config['rope_heads']} must divide "
                f"qk_rope_head_dim={self.qk_rope_head_dim} into equal parts, with rope of an even number of channels."
            )
        if self.mla_config["scale_q_lora"] and self.q_lora_rank is None:
            raise ValueError("mla_config.scale_q_lora=True needs q_lora_rank, which is not set.")
        if self.mla_config["rope_key_norm"] and not self.qk_rope_head_dim:
            raise ValueError("mla_config.rope_key_norm=True needs a qk_rope_head_dim above 0, got 0.")
        if self.mla_config["raw_query_latent"] and (self.q_lora_rank is None or not self.mla_config["norm"]):
            raise ValueError("mla_config.raw_query_latent=True needs q_lora_rank and mla_config.norm=True.")
        if self.mla_config["scale_by_mscale"] and not rotates:
            raise ValueError(
                "mla_config.scale_by_mscale=True needs position_embedding_type='rope', got "
                f"{self.position_embedding_type!r}."
            )
        if self.qk_norm is not None and (self.qk_rope_head_dim == 0 or self.qk_norm_config["scope"] != "head"):
            raise ValueError(
                f"qk_norm={self.qk_norm!r} with attention_type='latent' normalises the rotated key, head by head: it "
                "needs qk_rope_head_dim above 0 and qk_norm_config.scope='head'."
            )

    def _validate_indexer(self):
        found = self.attentions_with_indexer
        if found != {"latent"} and found != {"grouped_query"}:
            raise ValueError(
                "layer_types has 'indexed_attention', which needs attention_type='latent', or 'grouped_query', in all "
                f"such layers, got {self.attention_type!r}."
            )
        self._validate_blocks(in_blocks=found == {"grouped_query"})
        if self.position_embedding_type in POSITION_BIASES:
            # Only the distance tells equal tokens apart then, and their scores differ by rounding alone: a step and a
            # whole would choose different ones of them.
            raise ValueError(
                f"layer_types has 'indexed_attention', whose indexer cannot see the distances of "
                f"position_embedding_type={self.position_embedding_type!r}: use one of "
                "'rope', 'learned', 'sinusoidal' or 'none'."
            )
        if "latent" in found and self.index_head_dim < self.rope_head_width:
            raise ValueError(
                f"index_head_dim={self.index_head_dim} must be at least qk_rope_head_dim / mla_config.rope_heads = "
                f"{self.rope_head_width}: the same rotation turns its first channels."
            )
        source = None
        for index, (layer_type, kind) in enumerate(zip(self.layer_types, self.indexer_types, strict=True)):
            if (layer_type == INDEXED) != (kind != "none"):
                raise ValueError(
                    f"indexer_types[{index}]={kind!r} does not go with layer_types[{index}]={layer_type!r}: an "
                    "'indexed_attention' layer is 'full' or 'shared', every other layer 'none'."
                )
            source = index if kind == "full" else source
            if kind == "shared" and source is None:
                raise ValueError(f"indexer_types[{index}]='shared' needs a 'full' layer before it.")

    @property
    def rope_head_width(self) -> int:
        """Channels of one head of the rotated key of latent attention."""
        return self.qk_rope_head_dim // self.mla_config["rope_heads"]

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
        scaled = self.mla_config["scale_by_mscale"] and table.get("rope_type", "default") != "default"
        strength = table.get("mscale_all_dim") if scaled else None
        if not strength or table["factor"] <= 1:
            return 1.0
        return (0.1 * strength * math.log(table["factor"]) + 1.0) ** 2
