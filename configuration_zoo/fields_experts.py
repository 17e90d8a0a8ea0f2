"""Sparse layers: routed experts, their router, shared experts."""

from dataclasses import dataclass

from .field_kinds import choice, count, factor, flag, non_negative, positive, probability, settings, size
from .field_settings import described
from .fields_checks import for_each_layer, refuse_unless, require

SCORING_FUNCS = ("softmax", "sigmoid", "sqrtsoftplus", "sparsemixer")
GROUP_SCORES = ("top2_sum", "max")
GROUP_MASK_VALUES = ("-inf", "zero")
ZERO_EXPERT_TYPES = ("identity", "zero")
SHARED_EXPERT_COMBINATIONS = ("sum", "average", "normed_sum")
GROUP_FIELDS = ("topk_group", "router.group_score", "router.group_mask_value")
SHARED_FIELDS = ("shared_expert_intermediate_size", "shared_expert_gate", "shared_expert_combination_strategy")


def _fill(config, field: str, value) -> None:
    if getattr(config, field) is None:
        setattr(config, field, value)


@dataclass(kw_only=True, repr=False)
class ExpertFields:
    """Mixture of experts (Shazeer et al. 2017): a router sends each token to k of E small MLPs.

    Used by the layers that `mlp_layer_types` calls "sparse"; all None when there is none.
    """

    num_experts: int | None = size(
        meaning="How many routed experts a sparse layer has.",
        source="Shazeer et al. 2017, arXiv 1701.06538",
    )
    num_experts_per_tok: int | None = size(
        needs="sparse layer",
        meaning="How many experts a token goes to.",
        source="Shazeer et al. 2017, arXiv 1701.06538",
    )
    moe_intermediate_size: int | None = size(
        needs="sparse layer",
        meaning="Inner width of a routed expert. None: intermediate_size.",
        source="DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, §3.1",
    )
    moe_latent_size: int | None = size(
        needs="sparse layer",
        meaning="Width of the space the experts work in, between two projections of the layer's own. None: "
        "hidden_size.",
        source="Nemotron 3 (NVIDIA 2025)",
    )
    zero_expert_num: int | None = size(
        needs="sparse layer",
        meaning="Zero-computation experts: further outputs of the router that cost nothing. None: none.",
        source="MoE++, Jin et al. 2024, arXiv 2410.07348; LongCat-Flash, arXiv 2509.01322",
    )
    zero_expert_type: str | None = choice(
        ZERO_EXPERT_TYPES,
        needs="zero_expert_num",
        meaning="A zero-computation expert returns its input, or zero. None: identity.",
        source="MoE++, Jin et al. 2024, arXiv 2410.07348, §3.1; LongCat-Flash, arXiv 2509.01322",
    )

    expert_bias: bool | None = flag(
        None,
        needs="sparse layer",
        meaning="The projections of the experts have biases. gated_mlp and hidden_act say what an expert computes, as "
        "for a dense layer.",
        source="gpt-oss (OpenAI 2025), arXiv 2508.10925",
    )
    swiglu_limit: float | int | None = positive(
        needs="gated_mlp",
        meaning="In routed and shared experts the gate is clamped to at most this limit, the up projection to ± the "
        "limit. None: neither.",
        source="gpt-oss (OpenAI 2025), arXiv 2508.10925",
    )
    scoring_func: str | None = choice(
        SCORING_FUNCS,
        needs="sparse layer",
        meaning="Score of an expert: softmax, sigmoid, sqrt(softplus), or the sampling and thresholds of sparsemixer. "
        "None: softmax.",
        source="Shazeer et al. 2017, arXiv 1701.06538; DeepSeek-V3, arXiv 2412.19437 (sigmoid); DeepSeek-V4 "
        "(sqrtsoftplus); Liu et al. 2024, arXiv 2409.12136 (sparsemixer)",
    )
    norm_topk_prob: bool | None = flag(
        None,
        needs="sparse layer",
        meaning="Weights are divided by max(sum + eps, min) over the selected experts. None: yes, unless they sum to "
        "one as they are or scoring_func is sparsemixer.",
        source="Lepikhin et al. 2020, GShard, arXiv 2006.16668; Mixtral, arXiv 2401.04088",
    )
    routed_scaling_factor: float | int | None = positive(
        needs="sparse layer",
        meaning="Factor on the weights of the experts, after their division. None: 1.",
        source="DeepSeek-V2, arXiv 2405.04434",
    )
    n_group: int | None = size(
        needs="sparse layer",
        meaning="Experts are selected within the best topk_group of so many groups. None: no groups.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.2.2",
    )
    topk_group: int | None = size(
        needs="n_group",
        meaning="How many groups a token's experts come from.",
        source="DeepSeek-V2, arXiv 2405.04434, §2.2.2",
    )
    use_score_correction_bias: bool | None = flag(
        None,
        needs="sparse layer",
        meaning="A bias per expert counts in the selection, not in the weights.",
        source="Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437",
    )
    router: dict | None = settings(
        "Details of the router, key by key; scoring_func, norm_topk_prob, routed_scaling_factor, the groups and "
        "use_score_correction_bias are fields of their own, as transformers spells them.",
        bias=flag(
            None,
            needs="sparse layer",
            meaning="The router has a learned bias on its logits.",
            source="gpt-oss (OpenAI 2025), arXiv 2508.10925",
        ),
        logit_softcapping=positive(
            needs="sparse layer",
            meaning="The router's logits become cap · tanh(logit / cap). None: no cap.",
            source="Laguna (Poolside 2026)",
        ),
        input_norm=flag(
            None,
            needs="sparse layer",
            meaning="What the router reads passes an RMS norm with a weight first.",
            source="Gemma 4's published code",
        ),
        input_multiplier=factor(
            needs="router.input_norm",
            meaning="Constant factor on what the router reads, behind its norm. None: 1.",
            source="Gemma 4's published code",
        ),
        jitter_noise=probability(
            None,
            needs="sparse layer",
            meaning="In training the input of the layer is multiplied by U(1 - noise, 1 + noise). None: 0.",
            source="Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, §2.4",
        ),
        score_after_topk=flag(
            None,
            needs="sparse layer",
            meaning="Experts are selected by their logits and the selected ones alone are scored, instead of all "
            "before.",
            source="gpt-oss (OpenAI 2025), arXiv 2508.10925; Llama 4 (Meta 2025)",
        ),
        sparsemixer_jitter_eps=non_negative(
            needs="sparsemixer",
            meaning="Half of the threshold of sparsemixer. None: 0.01.",
            source="Liu et al. 2024, arXiv 2409.12136",
        ),
        norm_topk_eps=non_negative(
            needs="norm_topk_prob",
            meaning="The eps in that division. None: 1e-20.",
            source="DeepSeek-V3's published code",
        ),
        norm_topk_min=non_negative(
            needs="norm_topk_prob",
            meaning="The min in that division. None: no such bound.",
            source="Ernie 4.5's published code",
        ),
        group_score=choice(
            GROUP_SCORES,
            needs="n_group",
            meaning="Score of a group: the sum of its two best experts, or its best one. None: top2_sum.",
            source="DeepSeek-V3, arXiv 2412.19437 (top2_sum); DeepSeek-V2, arXiv 2405.04434 (max)",
        ),
        group_mask_value=choice(
            GROUP_MASK_VALUES,
            needs="n_group",
            meaning="What the scores of experts outside the chosen groups are set to before the selection. None: -inf.",
            source="DeepSeek-V3's published code (-inf); DeepSeek-V2's (zero)",
        ),
        latent_norm=flag(
            None,
            needs="moe_latent_size",
            meaning="What the routed experts give together passes an RMS norm before it is projected back from "
            "moe_latent_size channels. None: no.",
            source="Kimi K3 (Moonshot AI 2026)",
        ),
        per_expert_scale=flag(
            None,
            needs="sparse layer",
            meaning="A learned factor per expert on the weights.",
            source="Gemma 4's published code",
        ),
        num_hash_layers=count(
            needs="sparse layer",
            meaning="In the sparse layers among the first so many, a table says which experts a token goes to, by its "
            "id; the router's scores are their weights. None: 0.",
            source="Roller et al. 2021, Hash Layers, arXiv 2106.04426; DeepSeek-V4 (DeepSeek 2026), §2.1",
        ),
        weight_on_input=flag(
            None,
            needs="sparse layer",
            meaning="The weight multiplies an expert's input instead of its output.",
            source="Llama 4 (Meta 2025)",
        ),
    )

    n_shared_experts: int | None = count(
        needs="sparse layer",
        meaning="How many experts every token visits, computed as one MLP. None: 0, or 1 with a "
        "shared_expert_intermediate_size.",
        source="DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, §3.2",
    )
    shared_expert_intermediate_size: int | None = size(
        needs="sparse layer",
        meaning="Inner width of that MLP. None: n_shared_experts · moe_intermediate_size.",
        source="Qwen1.5-MoE (Qwen 2024)",
    )
    shared_expert_gate: bool | None = flag(
        None,
        needs="n_shared_experts",
        meaning="A sigmoid gate, one number per token, on the output of the shared experts.",
        source="Qwen1.5-MoE (Qwen 2024)",
    )
    shared_expert_combination_strategy: str | None = choice(
        SHARED_EXPERT_COMBINATIONS,
        needs="n_shared_experts",
        meaning="The output of the shared experts is added to that of the routed ones, averaged with it, or added and "
        "normed (normed_sum). None: sum.",
        source="DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066 (sum); Cohere (average); A.X K1 (normed_sum)",
    )

    def resolve_experts(self) -> None:
        if "sparse" not in self.mlp_layer_types:
            return
        _fill(self, "moe_intermediate_size", self.intermediate_size)
        self._resolve_router()
        self._resolve_shared_experts()
        for field, default in (
            ("expert_bias", False),
            ("zero_expert_type", "identity" if self.zero_expert_num else None),
        ):
            _fill(self, field, default)

    def _resolve_router(self):
        _fill(self, "scoring_func", "softmax")
        _fill(self, "router.score_after_topk", False)
        sums_to_one = self.router["score_after_topk"] and self.scoring_func == "softmax"
        _fill(self, "norm_topk_prob", self.scoring_func != "sparsemixer" and not sums_to_one)
        if self.norm_topk_prob:
            _fill(self, "router.norm_topk_eps", 1e-20)
        if self.scoring_func == "sparsemixer":
            _fill(self, "router.sparsemixer_jitter_eps", 0.01)
        if self.n_group is not None:
            _fill(self, "router.group_score", "top2_sum")
            _fill(self, "router.group_mask_value", "-inf")
        if self.router["input_norm"]:
            _fill(self, "router.input_multiplier", 1.0)
        for field, default in (
            ("routed_scaling_factor", 1.0),
            ("use_score_correction_bias", False),
            ("router.bias", False),
            ("router.weight_on_input", False),
            ("router.input_norm", False),
            ("router.per_expert_scale", False),
            ("router.jitter_noise", 0.0),
            ("router.num_hash_layers", 0),
        ):
            _fill(self, field, default)

    def _resolve_shared_experts(self):
        _fill(self, "n_shared_experts", 0 if self.shared_expert_intermediate_size is None else 1)
        if self.n_shared_experts:
            _fill(self, "shared_expert_intermediate_size", self.n_shared_experts * self.moe_intermediate_size)
            _fill(self, "shared_expert_gate", False)
            _fill(self, "shared_expert_combination_strategy", "sum")

    @for_each_layer
    def validate_experts(self) -> None:
        sparse = "sparse" in self.mlp_layer_types
        layer = "a 'sparse' layer in mlp_layer_types"
        refuse_unless(self, sparse, layer, described(ExpertFields))
        if not sparse:
            return
        require(self, layer.capitalize(), ("num_experts", "num_experts_per_tok", "moe_intermediate_size"))
        refuse_unless(self, bool(self.zero_expert_num), "zero_expert_num", ("zero_expert_type",))
        refuse_unless(self, bool(self.moe_latent_size), "moe_latent_size", ("router.latent_norm",))
        if self.zero_expert_num and self.router["weight_on_input"]:
            raise ValueError("router.weight_on_input=True cannot be combined with zero_expert_num.")
        self._validate_expert_activation()
        self._validate_selection()
        self._validate_hash_layers()
        self._validate_groups()
        self._validate_shared_experts()

    @property
    def num_router_outputs(self) -> int:
        """Ids the router chooses among: the experts and the zero experts after them."""
        return self.num_experts + (self.zero_expert_num or 0)

    def _validate_expert_activation(self):
        refuse_unless(self, self.gated_mlp, "gated_mlp=True", ("swiglu_limit",))
        alpha = self.swiglu_config["alpha"]
        if alpha is not None and self.hidden_act != "silu":
            raise ValueError(f"swiglu_config.alpha={alpha} needs hidden_act='silu', got {self.hidden_act!r}.")

    def _validate_selection(self):
        if self.num_experts_per_tok > self.num_router_outputs:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} must not exceed the "
                f"{self.num_router_outputs} experts there are."
            )
        samples = self.scoring_func == "sparsemixer"
        refuse_unless(self, samples, "scoring_func='sparsemixer'", ("router.sparsemixer_jitter_eps",))
        refuse_unless(
            self,
            not samples,
            "a scoring_func other than 'sparsemixer'",
            ("router.score_after_topk", "norm_topk_prob", "n_group", "use_score_correction_bias"),
        )
        refuse_unless(self, not self.router["score_after_topk"], "router.score_after_topk=False", ("n_group",))
        refuse_unless(
            self, bool(self.norm_topk_prob), "norm_topk_prob=True", ("router.norm_topk_eps", "router.norm_topk_min")
        )
        refuse_unless(self, bool(self.router["input_norm"]), "router.input_norm=True", ("router.input_multiplier",))

    def _validate_hash_layers(self):
        count = self.router["num_hash_layers"]
        if count and "sparse" not in self.mlp_layer_types[:count]:
            raise ValueError(f"router.num_hash_layers={count} needs a 'sparse' layer among the first {count} layers.")
        if count and (self.scoring_func == "sparsemixer" or self.router["score_after_topk"]):
            raise ValueError(
                f"router.num_hash_layers={count} needs a scoring_func other than 'sparsemixer' and "
                "router.score_after_topk=False: the table says which experts, and their scores are the weights."
            )

    def hashes_tokens(self, layer_idx: int) -> bool:
        """Whether a token's id chooses its experts in layer `layer_idx`."""
        return layer_idx < (self.router["num_hash_layers"] or 0) and self.mlp_layer_types[layer_idx] == "sparse"

    def _validate_groups(self):
        refuse_unless(self, self.n_group is not None, "n_group", GROUP_FIELDS)
        if self.n_group is None:
            return
        require(self, "n_group", ("topk_group",))
        size, rest = divmod(self.num_router_outputs, self.n_group)
        if rest:
            raise ValueError(f"n_group={self.n_group} must divide the {self.num_router_outputs} experts evenly.")
        if self.topk_group > self.n_group or self.topk_group * size < self.num_experts_per_tok:
            raise ValueError(
                f"topk_group={self.topk_group} must be at most n_group={self.n_group}, and those groups of {size} "
                f"experts must hold num_experts_per_tok={self.num_experts_per_tok}."
            )
        if self.router["group_score"] == "top2_sum" and size < 2:
            raise ValueError(
                f"router.group_score='top2_sum' needs groups of two experts, n_group={self.n_group} leaves one."
            )

    def _validate_shared_experts(self):
        refuse_unless(self, self.n_shared_experts > 0, "n_shared_experts", SHARED_FIELDS)
