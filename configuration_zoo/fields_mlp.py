"""The dense channel mixer."""

from dataclasses import dataclass

from .field_kinds import Choice, choice, flag, non_negative, number, per_layer, positive, settings, size
from .fields_checks import for_each_layer, refuse_unless
from .vocabulary import ACTIVATIONS, MLP_LAYER_TYPES

WIDTH_MULTIPLE = 64


@dataclass(kw_only=True, repr=False)
class MlpFields:
    """Feed-forward layers: plain down(act(up x)) or gated down(act(gate x) · up x) (Shazeer 2020)."""

    gated_mlp: bool = flag(
        True,
        needs="mlp",
        meaning="An MLP is down(act(gate x) · up x) instead of down(act(up x)).",
        source="Shazeer 2020, arXiv 2002.05202",
    )
    hidden_act: str = choice(
        ACTIVATIONS,
        "silu",
        needs="mlp",
        meaning='Activation of an MLP; "linear" with a gate is the bilinear unit, "sigmoid" the first gated one.',
        source="transformers' ACT2FN; Shazeer 2020, arXiv 2002.05202",
    )
    intermediate_size: int | None = size(
        meaning="Inner width of an MLP. None: 4 · hidden_size, or with a gate 8/3 · hidden_size rounded up to 64, "
        "which has as many parameters.",
        source="Shazeer 2020, arXiv 2002.05202, §2",
    )
    mlp_bias: bool = flag(
        needs="plain mlp",
        meaning="The projections of an MLP have biases.",
        source="transformers",
    )
    swiglu_config: dict | None = settings(
        "Details of gated MLPs, key by key; swiglu_limit is a field of its own, as transformers spells it.",
        alpha=positive(
            needs="gated experts",
            meaning="The activation of the gate in experts is x · sigmoid(alpha · x). None: hidden_act.",
            source="gpt-oss (OpenAI 2025), arXiv 2508.10925",
        ),
        up_offset=number(
            needs="gated experts",
            meaning="Added to the up projection of an expert, which the gate then multiplies. None: 0.",
            source="gpt-oss (OpenAI 2025), arXiv 2508.10925 (1)",
        ),
        clamp_behind_activation=flag(
            None,
            needs="clamped mlp",
            meaning="The gate is clamped to at most the limit behind its activation, not before it.",
            source="Step 3.5 Flash (StepFun 2026)",
        ),
        dense_limit=positive(
            needs="gated dense mlp",
            meaning="The limit of a dense MLP: its gate is clamped to at most this, the up projection to ± this. None: "
            "neither.",
            source="Step 3.5 Flash (StepFun 2026)",
        ),
        dense_alpha=positive(
            needs="gated dense mlp",
            meaning="The activation of the gate in a dense MLP is x · sigmoid(dense_alpha · x). None: hidden_act.",
            source="MiniMax-M3 (MiniMax 2026)",
        ),
        dense_up_offset=number(
            needs="gated dense mlp",
            meaning="Added to the up projection of a dense MLP, which the gate then multiplies. None: 0.",
            source="MiniMax-M3 (MiniMax 2026) (1)",
        ),
        activation_sparsity=number(
            above=0,
            below=1,
            needs="gated dense mlp",
            meaning="The share of the gate's channels of a dense MLP that is silenced in front of its activation, were "
            "they distributed normally: max(0, gate - mean - deviation · its quantile). None: none.",
            source="Gaussian top-k, You et al. 2025 (Spark Transformer), arXiv 2506.06644; Gemma 3n (Google 2025)",
        ),
        gate_softcap=positive(
            needs="gated mlp",
            meaning="In MLPs and experts the gate's activation is cap · tanh(gate / cap) · sigmoid(gate). None: "
            "hidden_act.",
            source="SiTU, Kimi K3 (Moonshot AI 2026); Inkling 2 (Thinking Machines 2026)",
        ),
        up_softcap=positive(
            needs="gated mlp",
            meaning="In MLPs and experts the up projection becomes cap · tanh(up / cap). None: it stays.",
            source="SiTU, Kimi K3 (Moonshot AI 2026); Inkling 2 (Thinking Machines 2026)",
        ),
        shared_limit=non_negative(
            needs="gated shared experts",
            meaning="The limit of shared experts, 0 for none. None: swiglu_limit.",
            source="Step 3.5 Flash (StepFun 2026)",
        ),
    )
    mlp_layer_types: list[str] | None = per_layer(
        Choice(MLP_LAYER_TYPES),
        period=("dense", "sparse"),
        meaning="For each layer, a dense MLP or sparse experts. A number n: every n-th is sparse. None: sparse with "
        "num_experts, else dense.",
        source="transformers",
    )

    def resolve_mlp_layer_types(self) -> None:
        if self.mlp_layer_types is None:
            kind = "dense" if self.num_experts is None else "sparse"
            self.mlp_layer_types = ["dense" if block == "mixer_only" else kind for block in self.block_types]

    def resolve_mlp(self) -> None:
        if self.intermediate_size is None:
            plain = 4 * self.hidden_size
            matched = -(-(2 * plain) // (3 * WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
            self.intermediate_size = matched if self.gated_mlp else plain

    def has_dense_mlp(self, index: int) -> bool:
        """Whether layer `index` has a dense MLP, be it beside experts."""
        both = self.block_types[index] in ("scaled_sandwich_norm", "shortcut")
        return self.block_types[index] != "mixer_only" and (both or self.mlp_layer_types[index] == "dense")

    @for_each_layer
    def validate_mlp(self) -> None:
        for key in ("dense_alpha", "gate_softcap"):
            value = self.swiglu_config[key]
            if value is not None and self.hidden_act != "silu":
                raise ValueError(f"swiglu_config.{key}={value} needs hidden_act='silu', got {self.hidden_act!r}.")
        if self.swiglu_config["gate_softcap"] is not None:
            others = ("swiglu_config.alpha", "swiglu_config.dense_alpha")
            refuse_unless(self, False, "swiglu_config.gate_softcap left out", others)
        for index, (kind, block) in enumerate(zip(self.mlp_layer_types, self.block_types, strict=False)):
            if kind == "sparse" and block == "mixer_only":
                raise ValueError(
                    f"mlp_layer_types[{index}]='sparse' only means something with a block_type that has an MLP, not "
                    "'mixer_only': put 'dense' there or change that."
                )
