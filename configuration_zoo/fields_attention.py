"""Softmax attention: heads, windows, norms on queries and keys, gates, caps."""

from dataclasses import dataclass

from .field_kinds import Choice, choice, factor, flag, length, per_layer, positive, probability, settings, size
from .fields_checks import even_share, for_each_layer, refuse_unless
from .vocabulary import (
    ATTENDING_LAYERS,
    ATTENTION_TYPES,
    CHUNKED,
    FULL,
    LAYER_TYPES,
    NO_MIXER,
    NO_MIXER_LAYERS,
    NORM_TYPES,
    NORMS_WITH_BIAS,
    ORDERED_ATTENTIONS,
    PER_HEAD_ATTENTIONS,
    RECURRENT_LAYERS,
    SLIDING,
    SOFTMAX_LAYERS,
    SPARSE_PATTERNS,
    WINDOW_FIELDS,
)

QK_NORM_FIELDS = (
    "qk_norm_config.scope",
    "qk_norm_config.weight",
    "qk_norm_config.bias",
    "qk_norm_config.position",
    "qk_norm_config.layers",
    "qk_norm_config.eps",
)
QK_NORM_SCOPES = ("head", "full")
QK_NORM_WEIGHTS = ("shared", "per_head", "keys", "none")
QK_NORM_POSITIONS = ("before_rope", "after_rope")
QK_NORM_LAYERS = ("all", "rope")
QK_NORM_DEFAULTS = {
    "scope": "head", "weight": "shared", "bias": False, "position": "before_rope", "layers": "all",
}  # fmt: skip
CLIP_POSITIONS = ("before_norm", "after_norm")
ATTENTION_SINKS = ("all", FULL, SLIDING, CHUNKED)
OUTPUT_GATES = ("query", "elementwise", "headwise", "elementwise_softplus", "headwise_softplus")


@dataclass(kw_only=True, repr=False)
class AttentionFields:
    """Softmax attention (Vaswani et al. 2017) with shared key-value heads (Shazeer 2019; Ainslie et al. 2023)."""

    attention_type: str | list[str | None] = per_layer(
        Choice(ATTENTION_TYPES),
        "grouped_query",
        needs="softmax",
        meaning="The mechanism of softmax attention, one name for all layers or one for each (None for a layer "
        "without).",
        source="grouped_query: Ainslie et al. 2023, arXiv 2305.13245; differential: Ye et al. 2024, arXiv 2410.05258; "
        "forgetting: Lin et al. 2025, arXiv 2503.02130; stick_breaking: Tan et al. 2024, arXiv 2410.17980; "
        "path: Yang et al. 2025, arXiv 2505.16381; "
        "value_residual: Zhou et al. 2024, arXiv 2410.17897; multi_matrix_factorization: Hu et al. 2024, arXiv "
        "2412.19255; tensor_product: Zhang et al. 2025, arXiv 2501.06425; grouped_tied: Zadouri et al. 2025, arXiv "
        "2505.21487; latent: DeepSeek-V2, arXiv 2405.04434",
    )
    num_attention_heads: int = size(
        32,
        meaning="Heads of the queries.",
        source="Vaswani et al. 2017, §3.2.2",
    )
    num_key_value_heads: int | None = size(
        meaning="Heads of keys and values, a divisor of num_attention_heads; 1 is multi-query attention. None: as "
        "many as num_attention_heads, 1 with attention_type 'multi_matrix_factorization' alone.",
        source="Shazeer 2019, arXiv 1911.02150; Ainslie et al. 2023, arXiv 2305.13245",
    )
    head_dim: int | None = size(
        meaning="Channels of a head. None: hidden_size / num_attention_heads.",
        source="transformers",
    )
    v_head_dim: int | None = size(
        needs="softmax",
        meaning="Channels of a head's value, hence of its output; latent attention always has it. None: head_dim.",
        source="DeepSeek-V2, arXiv 2405.04434; MiMo-V2-Flash (Xiaomi 2025)",
    )
    attention_value_scale: float | int | None = factor(
        needs="softmax",
        meaning="Factor on the values before they are cached. None: 1.",
        source="MiMo-V2-Flash (Xiaomi 2025)",
    )
    value_norm: bool = flag(
        needs="softmax",
        meaning="Each head's values pass an RMS norm without a weight before they are cached.",
        source="Gemma 4's published code",
    )
    attention_k_eq_v: bool = flag(
        needs="softmax",
        meaning="The values are the projected keys, before those are normalised and rotated.",
        source="Gemma 4's published code",
    )
    layer_types: list[str] | None = per_layer(
        Choice(LAYER_TYPES),
        period=(SLIDING, FULL),
        meaning="The type of each layer by transformers' names: what a token attends to, hence the mask and the "
        "cache. A number n: every n-th is full_attention, the others slide, or are what linear_attention_type or "
        "attention_chunk_size is for. None: sliding_attention with a sliding_window, else full_attention.",
        source="transformers",
    )
    sliding_window: int | None = length(
        needs="sliding layer",
        meaning="A token sees itself and window - 1 before it, in the layers that slide. Without layer_types it is "
        "one for every layer.",
        source="Beltagy et al. 2020, arXiv 2004.05150",
    )
    attention_chunk_size: int | None = length(
        needs="chunked layer",
        meaning="A token sees what is before it in its own chunk of so many tokens, in chunked_attention layers.",
        source="Llama 4 (Meta 2025)",
    )
    sparse_attention_pattern: str | list[str] | None = per_layer(
        Choice(SPARSE_PATTERNS),
        meaning="Factorised pattern over a full_attention layer, one name for all of them or one for each layer.",
        source='Child et al. 2019, arXiv 1904.10509, §4.2; "banded": Brown et al. 2020, arXiv 2005.14165, §2.1',
    )
    sparse_attention_stride: int | None = length(
        needs="sparse pattern",
        meaning="Stride of the factorised patterns, in tokens; the width of a band.",
        source="Child et al. 2019, arXiv 1904.10509, §4.2",
    )
    use_bidirectional_attention: bool = flag(
        needs="softmax",
        meaning="Every token sees every other, those after it too: an encoder made of a decoder.",
        source="Gemma 3 embeddings (EmbeddingGemma, arXiv 2509.20354); transformers' name",
    )
    attention_bias: bool = flag(
        needs="softmax",
        meaning="The projections of queries, keys and values have biases.",
        source="transformers",
    )
    attention_out_bias: bool | None = flag(
        None,
        needs="softmax",
        meaning="The output projection has a bias. None: as attention_bias says.",
        source="own to zoo",
    )
    attention_multiplier: float | int | None = positive(
        needs="softmax",
        meaning="Scale of the scores. None: width of a key ** -0.5.",
        source="Granite 3 (IBM 2024)",
    )
    scale_attn_by_inverse_layer_idx: bool = flag(
        needs="later softmax",
        meaning="Scores are divided by the layer's number, counted from one.",
        source="Mistral-GPT-2 (Stanford CRFM 2021); transformers' GPT-2",
    )
    attn_logit_softcapping: float | int | None = positive(
        needs="softmax",
        meaning="Scores become cap · tanh(score / cap). None: no cap.",
        source="Gemma 2, arXiv 2408.00118, §2",
    )
    clip_qkv: float | int | None = positive(
        needs="softmax",
        meaning="Projected queries, keys and values are clamped to ± this number. None: no clamp.",
        source="MPT (MosaicML 2023); OLMo, arXiv 2402.00838",
    )
    clip_qkv_position: str | None = choice(
        CLIP_POSITIONS,
        needs="clip_qkv",
        meaning="Queries and keys are clamped before or after their norm. None: before_norm.",
        source="OLMoE, arXiv 2409.02060",
    )
    qk_norm: str | None = choice(
        NORM_TYPES,
        needs="softmax",
        meaning="The norm on queries and keys. None: no norm.",
        source="Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442",
    )
    qk_norm_config: dict | None = settings(
        "How the norm on queries and keys is done, with a qk_norm.",
        scope=choice(
            QK_NORM_SCOPES,
            needs="qk_norm",
            meaning="The norm goes over each head or over the full projection. None: head.",
            source="Qwen3, arXiv 2505.09388 (head); OLMo 2, arXiv 2501.00656 (full)",
        ),
        weight=choice(
            QK_NORM_WEIGHTS,
            needs="qk_norm",
            meaning="The norm's weight is shared by the heads, one for each head, on keys alone and shared by their "
            "heads, or none. None: shared.",
            source="Qwen3, arXiv 2505.09388 (shared); Command R+, Cohere 2024 (per_head); nanochat, Karpathy 2025 "
            "(none); DeepSeek-V4 (keys)",
        ),
        bias=flag(
            None,
            needs="qk_norm",
            meaning="A layer norm on queries and keys has a bias.",
            source="Phi (Microsoft 2023); Chameleon, arXiv 2405.09818",
        ),
        position=choice(
            QK_NORM_POSITIONS,
            needs="qk_norm",
            meaning="The norm is applied before or after the rotation. None: before_rope.",
            source="Qwen3, arXiv 2505.09388 (before_rope); Llama 4, Meta 2025 (after_rope)",
        ),
        layers=choice(
            QK_NORM_LAYERS,
            needs="qk_norm",
            meaning="The norm is in all layers, or in those alone that rotate. None: all.",
            source="Llama 4 (Meta 2025)",
        ),
        eps=positive(
            needs="qk_norm",
            meaning="Epsilon of the norm on queries and keys. None: norm_eps.",
            source="own to zoo",
        ),
    )
    attention_sinks: str | None = choice(
        ATTENTION_SINKS,
        needs="sinks",
        meaning="One learned logit per head takes part in the softmax and has no value, in the layers of this type.",
        source="gpt-oss (OpenAI 2025), arXiv 2508.10925; Xiao et al. 2023, arXiv 2309.17453",
    )
    attn_output_gate: str | None = choice(
        OUTPUT_GATES,
        needs="softmax",
        meaning="A sigmoid gate on the attention output before o_proj: per channel from a q_proj that is twice as "
        "wide (query), or from a g_proj of its own, per channel (elementwise) or per head (headwise); the words with "
        "softplus have it in place of the sigmoid. None: no gate.",
        source="Qiu et al. 2025, arXiv 2505.06708; Laguna (Poolside 2026) with softplus",
    )
    attention_dropout: float | int = probability(
        needs="softmax",
        meaning="Rate of dropout on the weights of attention, in training.",
        source="Vaswani et al. 2017, as published in tensor2tensor",
    )

    def resolve_layer_types(self) -> None:
        if self.layer_types is None:
            layer_type = SLIDING if self.sliding_window is not None else FULL
            self.layer_types = [NO_MIXER if block == "mlp_only" else layer_type for block in self.block_types]

    def resolve_attention(self) -> None:
        if self.num_key_value_heads is None:
            alone = self.attentions == {"multi_matrix_factorization"}
            self.num_key_value_heads = 1 if alone else self.num_attention_heads
        if self.head_dim is None:
            attends = any(layer_type in ATTENDING_LAYERS for layer_type in self.layer_types)
            self.head_dim = self.even_head_dim() if attends else max(self.hidden_size // self.num_attention_heads, 1)
        if self.attention_out_bias is None:
            self.attention_out_bias = self.attention_bias
        if isinstance(self.sparse_attention_pattern, str):
            pattern = self.sparse_attention_pattern
            softmax = [layer_type in SOFTMAX_LAYERS for layer_type in self.layer_types]
            self.sparse_attention_pattern = [pattern if is_softmax else "none" for is_softmax in softmax]
        if self.qk_norm is not None:
            given = {key: value for key, value in self.qk_norm_config.items() if value is not None}
            if given.get("eps") == self.norm_eps:
                del given["eps"]  # as left out
            self.qk_norm_config = QK_NORM_DEFAULTS | given
        if self.clip_qkv is not None:
            self.clip_qkv_position = self.clip_qkv_position or "before_norm"

    def even_head_dim(self) -> int:
        """hidden_size / num_attention_heads; raises ValueError where that leaves a rest."""
        width, heads = self.hidden_size, self.num_attention_heads
        return even_share(width, heads, f"hidden_size={width} / num_attention_heads={heads}", "head_dim")

    @for_each_layer
    def validate_attention(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        self._validate_patterns()
        self._validate_qk_norm()
        self._validate_values()

    def _validate_patterns(self):
        sparse = [p for p in self.sparse_attention_pattern or () if p != "none"]
        if sparse and self.sparse_attention_stride is None:
            raise ValueError("sparse_attention_pattern needs sparse_attention_stride, which is not set.")
        refuse_unless(self, bool(sparse), "a sparse_attention_pattern", ("sparse_attention_stride",))
        for index, pattern in enumerate(self.sparse_attention_pattern or ()):
            if pattern != "none" and self.layer_types[index] != FULL:
                raise ValueError(
                    f"sparse_attention_pattern[{index}]={pattern!r} needs layer_types[{index}]='full_attention', "
                    f"got {self.layer_types[index]!r}."
                )
        for index, (layer_type, block) in enumerate(zip(self.layer_types, self.block_types, strict=False)):
            if (layer_type in NO_MIXER_LAYERS) != (block == "mlp_only"):
                raise ValueError(
                    f"layer_types[{index}]={layer_type!r} and block_type {block!r} contradict each other: a layer "
                    f"without a mixer is {NO_MIXER!r} in layer_types and 'mlp_only' in block_type."
                )
        two_sided = (FULL, *NO_MIXER_LAYERS)
        if self.use_bidirectional_attention and any(layer_type not in two_sided for layer_type in self.layer_types):
            raise ValueError("use_bidirectional_attention=True needs full attention in every layer of layer_types.")

    def validate_windows(self) -> None:
        for name in dict.fromkeys(WINDOW_FIELDS.values()):
            types = [layer_type for layer_type, field in WINDOW_FIELDS.items() if field == name]
            used = any(layer_type in types for layer_type in self.layer_types)
            refuse_unless(self.outside_layers(), used, f"a layer of layer_types that is one of {types}", (name,))
        layers = zip(self.layer_types, self.attention_types, self.per_layer_config, strict=False)
        for index, (layer_type, mechanism, layer) in enumerate(layers):
            field = WINDOW_FIELDS.get(layer_type)
            if field is not None and getattr(layer, field) is None:
                raise ValueError(f"layer_types[{index}]={layer_type!r} needs {field}, which is not set.")
            if layer_type not in (*RECURRENT_LAYERS, *NO_MIXER_LAYERS) and mechanism is None:
                raise ValueError(f"layer_types[{index}]={layer_type!r} needs an attention_type, got None.")
            if mechanism not in (None, *self.attentions) and isinstance(self.attention_type, list):
                raise ValueError(
                    f"attention_type[{index}]={mechanism!r} only means something with layer_types[{index}] one of "
                    f"{list(ATTENDING_LAYERS)}: put None there or change that."
                )

    def _validate_qk_norm(self):
        refuse_unless(self, self.clip_qkv is not None, "clip_qkv", ("clip_qkv_position",))
        refuse_unless(self, self.qk_norm is not None, "qk_norm", QK_NORM_FIELDS)
        how = self.qk_norm_config
        if how["layers"] == "rope" and self.position_embedding_type != "rope":
            raise ValueError(
                "qk_norm_config.layers='rope' needs position_embedding_type='rope', got "
                f"{self.position_embedding_type!r}."
            )
        if self.clip_qkv_position == "after_norm" and self.qk_norm is None:
            raise ValueError("clip_qkv_position='after_norm' needs qk_norm, which is not set.")
        if how["bias"] and (self.qk_norm not in NORMS_WITH_BIAS or how["weight"] == "none"):
            raise ValueError(
                f"qk_norm_config.bias=True needs a qk_norm of {list(NORMS_WITH_BIAS)} and a qk_norm_config.weight."
            )
        if how["scope"] == "full" and not NORM_TYPES[self.qk_norm].full_scope:
            allowed = [name for name, norm in NORM_TYPES.items() if norm.full_scope]
            raise ValueError(f"qk_norm_config.scope='full' needs a qk_norm of {allowed}, got {self.qk_norm!r}.")
        if how["scope"] == "full" and how["weight"] == "per_head":
            raise ValueError("qk_norm_config.weight='per_head' needs qk_norm_config.scope='head', got 'full'.")

    def _validate_values(self):
        grouped = bool(self.attentions & {*PER_HEAD_ATTENTIONS})
        reason = f"an attention_type of {list(PER_HEAD_ATTENTIONS)}"
        # The clamp acts on whole keys, which other caches do not hold.
        refuse_unless(self, grouped or not self.attentions, reason, ("clip_qkv",))
        refuse_unless(self, grouped, reason, ("attention_value_scale",))
        for field in ("value_norm", "attention_k_eq_v"):
            if getattr(self, field) and (not grouped or self.position_embedding_type == "transformer_xl"):
                raise ValueError(
                    f"{field}=True needs {reason} and a position_embedding_type other than 'transformer_xl'."
                )
        if self.attention_k_eq_v and self.value_width != self.head_dim:
            raise ValueError(
                f"attention_k_eq_v=True needs v_head_dim={self.v_head_dim} to be head_dim={self.head_dim}."
            )
        self._validate_order()
        if "differential" in self.attentions and self.num_key_value_heads % 2:
            raise ValueError(
                f"attention_type='differential' needs an even num_key_value_heads, got {self.num_key_value_heads}: the "
                "two heads whose difference is taken share a pair of values."
            )

    def _validate_order(self):
        ordered = [name for name in ORDERED_ATTENTIONS if name in self.attentions]
        refused = ["use_bidirectional_attention"]
        refused += ["sparse_attention_pattern"] if {"forgetting", "path"} & {*ordered} else []
        refused += ["attention_sinks"] if "stick_breaking" in ordered else []
        for field in refused if ordered else ():
            if getattr(self, field):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} cannot be combined with attention_type={ordered[-1]!r}, whose "
                    "weights go by the order of the keys before a token."
                )
        if "stick_breaking" in ordered and self.position_embedding_type == "alibi":
            raise ValueError(
                "position_embedding_type='alibi' cannot be combined with attention_type='stick_breaking': its biases "
                "are right up to a number per query, which a softmax alone takes away."
            )

    @property
    def value_width(self) -> int:
        """Channels of a head's value, hence of its output."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    def attention_scaling(self, layer_idx: int) -> float:
        """The factor on the scores of layer `layer_idx`."""
        scale = self.key_width(layer_idx) ** -0.5 if self.attention_multiplier is None else self.attention_multiplier
        scale *= self.mscale_factor(layer_idx)
        return scale / (layer_idx + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def has_qk_norm(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` normalises queries and keys."""
        layers = self.qk_norm_config["layers"]
        return layers == "all" or (layers == "rope" and self.rope_table_of(layer_idx) is not None)

    def has_attention_sinks(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` has learned sink logits."""
        return self.attention_sinks in ("all", self.layer_types[layer_idx])

    def sparse_pattern_of(self, layer_idx: int) -> str:
        """The factorised pattern of layer `layer_idx`, "none" for a plain one."""
        return self.sparse_attention_pattern[layer_idx] if self.sparse_attention_pattern else "none"
