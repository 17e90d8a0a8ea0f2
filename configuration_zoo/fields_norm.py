"""Which norm, where it stands, and how a layer's two halves join the residual stream."""

from dataclasses import dataclass

from .field_kinds import Choice, choice, factor, flag, per_layer, positive, settings
from .fields_checks import for_each_layer, refuse_unless
from .vocabulary import BLOCK_TYPES, NORM_TYPES, NORMS_WITH_BIAS, RECURRENT_LAYERS, SOFTMAX_LAYERS, WEIGHTED_BLOCKS

SOFTMAX_FACTORS = ("residual_factors.full_attn_alpha", "residual_factors.full_attn_beta")
RECURRENT_FACTORS = ("residual_factors.linear_attn_alpha", "residual_factors.linear_attn_beta")
MLP_FACTORS = ("residual_factors.mlp_alpha", "residual_factors.mlp_beta")


@dataclass(kw_only=True, repr=False)
class NormFields:
    """Normalisation and residual topology."""

    norm_type: str = choice(
        NORM_TYPES,
        "rms_norm",
        meaning="The norm of the residual stream.",
        source="Zhang & Sennrich 2019, arXiv 1910.07467 (rms_norm); Ba et al. 2016, arXiv 1607.06450 (layer_norm)",
    )
    norm_eps: float | int = positive(
        1e-6,
        meaning="Added to the mean square, or the variance, so that nothing is divided by zero.",
        source="transformers",
    )
    norm_elementwise_affine: bool = flag(
        True,
        meaning="The norms have a learned scale; without it they have no parameters at all.",
        source="Ba et al. 2016, arXiv 1607.06450; without: OLMo, arXiv 2402.00838",
    )
    norm_bias: bool | None = flag(
        None,
        meaning="A layer norm has a learned bias. None: as the norm has it by default, layer norm with one, RMS norm "
        "without.",
        source="Ba et al. 2016, arXiv 1607.06450",
    )
    norm_unit_offset: bool = flag(
        meaning="The stored weight is an offset from one: y = x̂ · (1 + w).",
        source="Gemma, arXiv 2403.08295; Nemotron-4, arXiv 2402.16819",
    )
    block_type: str | list[str] = per_layer(
        Choice(BLOCK_TYPES),
        "pre_norm",
        meaning="Residual topology, one name for all layers or one for each; modeling_zoo/block_topologies.py draws "
        "them.",
        source="Xiong et al. 2020, arXiv 2002.04745; Wang & Komatsuzaki 2021 (parallel)",
    )
    residual_multiplier: float | int = factor(
        1.0,
        meaning="Factor on the output of each sub-layer before it joins the residual stream.",
        source="MiniCPM, arXiv 2404.06395; Granite 3 (IBM 2024)",
    )
    residual_factors: dict | None = settings(
        "The α and β of the sums α · residual + β · output, where the residual comes out of a norm.",
        full_attn_alpha=positive(
            needs="weighted residual",
            meaning="The α of the sum after softmax attention: what its residual is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        full_attn_beta=positive(
            needs="weighted residual",
            meaning="The β of the sum after softmax attention: what its output is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        linear_attn_alpha=positive(
            needs="weighted residual",
            meaning="The α of the sum after a recurrence: what its residual is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        linear_attn_beta=positive(
            needs="weighted residual",
            meaning="The β of the sum after a recurrence: what its output is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        mlp_alpha=positive(
            needs="weighted residual",
            meaning="The α of the sum after an MLP: what its residual is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        mlp_beta=positive(
            needs="weighted residual",
            meaning="The β of the sum after an MLP: what its output is multiplied with. None: 1.",
            source="DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv 2501.08313",
        ),
        stream=positive(
            needs="hyper-connections",
            meaning="The β of hyper-connections is this times a sigmoid. None: 2.",
            source="Xie et al. 2025, arXiv 2512.24880 (2); Hy4 (Tencent 2026)",
        ),
    )
    embedding_norm: bool = flag(
        meaning="The embeddings are normalised.",
        source="BLOOM, arXiv 2211.05100, §3.2",
    )
    final_norm: bool = flag(
        True,
        meaning="There is a norm before the head.",
        source="Radford et al. 2019 (GPT-2), §2.3",
    )

    def resolve_norm(self) -> None:
        # A misspelt type is refused after this.
        norm = NORM_TYPES.get(self.norm_type)
        if norm is not None and self.norm_bias is None:
            self.norm_bias = norm.bias and self.norm_elementwise_affine

    @for_each_layer
    def validate_norm(self) -> None:
        self._validate_shortcut()
        self._validate_sub_norm()
        if self.norm_bias and not (self.norm_type in NORMS_WITH_BIAS and self.norm_elementwise_affine):
            raise ValueError(
                f"norm_bias=True needs a norm_type of {list(NORMS_WITH_BIAS)} and norm_elementwise_affine=True, "
                f"got norm_type={self.norm_type!r}, norm_elementwise_affine={self.norm_elementwise_affine}."
            )
        if self.norm_unit_offset and not self.norm_elementwise_affine:
            raise ValueError("norm_unit_offset=True needs norm_elementwise_affine=True: there is no weight to offset.")
        self._validate_factors()

    def _validate_factors(self):
        weighted = any(block in WEIGHTED_BLOCKS for block in self.block_types)
        every = (*SOFTMAX_FACTORS, *RECURRENT_FACTORS, *MLP_FACTORS)
        refuse_unless(self, weighted, f"a block_type of {list(WEIGHTED_BLOCKS)}", every)
        recurrent = [layer_type in RECURRENT_LAYERS for layer_type in self.layer_types]
        refuse_unless(
            self, any(recurrent), f"a layer of layer_types that is one of {list(RECURRENT_LAYERS)}", RECURRENT_FACTORS
        )
        refuse_unless(self, not all(recurrent), "a layer of layer_types with softmax attention", SOFTMAX_FACTORS)

    def residual_factors_of(self, layer_idx: int) -> tuple[tuple, tuple]:
        """(α, β) of the mixer's sum and of the MLP's in layer `layer_idx`."""
        mixer = RECURRENT_FACTORS if self.layer_types[layer_idx] in RECURRENT_LAYERS else SOFTMAX_FACTORS
        values = [[getattr(self, name) for name in names] for names in (mixer, MLP_FACTORS)]
        return tuple(tuple(1 if value is None else value for value in pair) for pair in values)

    def _validate_sub_norm(self):
        for index, block in enumerate(self.block_types):
            word, mlp = self.layer_types[index], self.mlp_layer_types[index]
            if block == "sub_norm" and (word not in SOFTMAX_LAYERS or mlp != "dense"):
                raise ValueError(
                    f"block_type 'sub_norm' of layer {index} has a norm inside softmax attention and inside a dense "
                    f"MLP, so layer_types[{index}] is one of {list(SOFTMAX_LAYERS)} and mlp_layer_types[{index}] "
                    f"'dense', got {word!r} and {mlp!r}."
                )

    def _validate_shortcut(self):
        if "shortcut" not in self.block_types:
            return
        if set(self.block_types) != {"shortcut"}:
            raise ValueError("block_type: 'shortcut' reaches into the next layer, so every layer must have it.")
        if self.mlp_layer_types[-1] == "sparse":
            raise ValueError(
                "block_type='shortcut' needs mlp_layer_types to end with 'dense': the experts of a 'sparse' layer join "
                "the residual stream after the next one."
            )

    @property
    def block_types(self) -> list[str]:
        """The residual topology of each layer."""
        if isinstance(self.block_type, list):
            return self.block_type
        return [self.block_type] * self.num_hidden_layers
