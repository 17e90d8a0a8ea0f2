"""Sparse layers: routed experts, their router, shared experts."""

from dataclasses import dataclass, fields

from .field_kinds import choice, count, factor, flag, non_negative, number, positive, probability, size
from .fields_checks import for_each_layer, refuse_unless, require

SCORING_FUNCS = ("softmax", "sigmoid", "sqrtsoftplus", "sparsemixer")
GROUP_SCORES = ("top2_sum", "max")
GROUP_MASK_VALUES = ("-inf", "zero")
ZERO_EXPERT_TYPES = ("identity", "zero")
SHARED_EXPERT_COMBINATIONS = ("sum", "average")
GROUP_FIELDS = ("topk_group", "group_score", "group_mask_value")
SHARED_FIELDS = ("shared_expert_intermediate_size", "shared_expert_gate", "shared_expert_combination_strategy")
SWIGLU_FIELDS = ("swiglu_limit", "swiglu_alpha", "swiglu_up_offset")


def _fill(config, field: str, value) -> None:
    if getattr(config, field) is None:
        setattr(config, field, value)


@dataclass(kw_only=True, repr=False)
class ExpertFields:
    """Mixture of experts (Shazeer et al. 2017): a router sends each token to k of E small MLPs.

    Used by the layers that `mlp_layer_types` calls "sparse"; all None when there is none.
    """

    # E routed experts, k of them per token, each of inner width I. I is intermediate_size when left out.
    num_experts: int | None = size()
    num_experts_per_tok: int | None = size()
    moe_intermediate_size: int | None = size()
    # Width of the space the experts work in, between two projections of the layer's own (Nemotron 3); None: as wide as
    # the layer.
    moe_latent_size: int | None = size()
    # Further ids of the router that cost nothing: they give the token back, or zero (MoE++, Jin et al. 2024; LongCat).
    zero_expert_num: int | None = size()
    zero_expert_type: str | None = choice(ZERO_EXPERT_TYPES)

    # Biases of the expert projections. gated_mlp and hidden_act say what an expert computes, as for a dense layer.
    expert_bias: bool | None = flag(None)
    # act(min(gate, limit)) · (clamp(up, ±limit) + offset), with act = x · sigmoid(alpha x) if alpha is set (gpt-oss).
    # Routed and shared experts alike.
    swiglu_limit: float | int | None = positive()
    swiglu_alpha: float | int | None = positive()
    swiglu_up_offset: float | int | None = number()

    # Score of an expert: softmax (Shazeer et al. 2017), sigmoid (DeepSeek-V3), sqrt(softplus) (DeepSeek-V4), or
    # sparsemixer's sampling and thresholds (Liu et al. 2024, arXiv 2409.12136; its threshold is 2 · jitter_eps).
    scoring_func: str | None = choice(SCORING_FUNCS)
    sparsemixer_jitter_eps: float | int | None = non_negative()
    # Select on the logits, then score the selected ones only (gpt-oss, Llama 4), instead of scoring first.
    score_after_topk: bool | None = flag(None)
    # weights / max(sum + eps, min), then · routed_scaling_factor.
    norm_topk_prob: bool | None = flag(None)
    norm_topk_eps: float | int | None = non_negative()
    norm_topk_min: float | int | None = non_negative()
    routed_scaling_factor: float | int | None = positive()
    # Select within the best topk_group of n_group groups of experts (DeepSeek-V2 §2.2.2; "top2_sum": DeepSeek-V3).
    # group_mask_value is what the experts outside are set to before the selection.
    n_group: int | None = size()
    topk_group: int | None = size()
    group_score: str | None = choice(GROUP_SCORES)
    group_mask_value: str | None = choice(GROUP_MASK_VALUES)
    # A bias per expert that counts in the selection, not in the weights (Wang et al. 2024, arXiv 2408.15664).
    use_score_correction_bias: bool | None = flag(None)
    # A learned bias of the logits.
    router_bias: bool | None = flag(None)
    # Multiply the experts' input by the weight instead of their output (Llama 4).
    apply_router_weight_on_input: bool | None = flag(None)
    # RMS norm with a weight on what the router reads, times a constant; a learned factor per expert on the weights
    # (Gemma 4).
    router_input_norm: bool | None = flag(None)
    router_input_multiplier: float | int | None = factor()
    router_per_expert_scale: bool | None = flag(None)
    # In training, the layer's input is multiplied by U(1 - noise, 1 + noise) (Switch Transformer, Fedus et al. 2021).
    router_jitter_noise: float | int | None = probability(None)

    # Experts that every token visits (DeepSeekMoE, Dai et al. 2024): one MLP, n · I wide unless a width is given, with
    # an optional sigmoid gate per token (Qwen1.5-MoE), added to or averaged with the routed output.
    n_shared_experts: int | None = count()
    shared_expert_intermediate_size: int | None = size()
    shared_expert_gate: bool | None = flag(None)
    shared_expert_combination_strategy: str | None = choice(SHARED_EXPERT_COMBINATIONS)

    def resolve_experts(self):
        if self.mlp_layer_types is None and self.num_experts is not None:
            self.mlp_layer_types = ["dense" if block == "mixer_only" else "sparse" for block in self.block_types]
        if "sparse" not in (self.mlp_layer_types or ()):
            return
        # The dense width, which an expert's is when left out, is derived by the group after this one.
        self.resolve_mlp()
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
        _fill(self, "score_after_topk", False)
        sums_to_one = self.score_after_topk and self.scoring_func == "softmax"
        _fill(self, "norm_topk_prob", self.scoring_func != "sparsemixer" and not sums_to_one)
        if self.norm_topk_prob:
            _fill(self, "norm_topk_eps", 1e-20)
        if self.scoring_func == "sparsemixer":
            _fill(self, "sparsemixer_jitter_eps", 0.01)
        if self.n_group is not None:
            _fill(self, "group_score", "top2_sum")
            _fill(self, "group_mask_value", "-inf")
        if self.router_input_norm:
            _fill(self, "router_input_multiplier", 1.0)
        for field, default in (
            ("routed_scaling_factor", 1.0),
            ("use_score_correction_bias", False),
            ("router_bias", False),
            ("apply_router_weight_on_input", False),
            ("router_input_norm", False),
            ("router_per_expert_scale", False),
            ("router_jitter_noise", 0.0),
        ):
            _fill(self, field, default)

    def _resolve_shared_experts(self):
        _fill(self, "n_shared_experts", 0 if self.shared_expert_intermediate_size is None else 1)
        if self.n_shared_experts:
            _fill(self, "shared_expert_intermediate_size", self.n_shared_experts * self.moe_intermediate_size)
            _fill(self, "shared_expert_gate", False)
            _fill(self, "shared_expert_combination_strategy", "sum")

    @for_each_layer
    def validate_experts(self):
        sparse = "sparse" in self.mlp_layer_types
        layer = "a 'sparse' layer in mlp_layer_types"
        refuse_unless(self, sparse, layer, [field.name for field in fields(ExpertFields)])
        if not sparse:
            return
        require(self, layer.capitalize(), ("num_experts", "num_experts_per_tok", "moe_intermediate_size"))
        refuse_unless(self, bool(self.zero_expert_num), "zero_expert_num", ("zero_expert_type",))
        if self.zero_expert_num and self.apply_router_weight_on_input:
            raise ValueError("apply_router_weight_on_input=True cannot be combined with zero_expert_num.")
        self._validate_expert_activation()
        self._validate_selection()
        self._validate_groups()
        self._validate_shared_experts()

    @property
    def num_router_outputs(self) -> int:
        """Ids the router chooses among: the experts and the zero experts after them."""
        return self.num_experts + (self.zero_expert_num or 0)

    def _validate_expert_activation(self):
        refuse_unless(self, self.gated_mlp, "gated_mlp=True", SWIGLU_FIELDS)
        if self.swiglu_alpha is not None and self.hidden_act != "silu":
            raise ValueError(f"swiglu_alpha={self.swiglu_alpha} needs hidden_act='silu', got {self.hidden_act!r}.")

    def _validate_selection(self):
        if self.num_experts_per_tok > self.num_router_outputs:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} must not exceed the "
                f"{self.num_router_outputs} experts there are."
            )
        samples = self.scoring_func == "sparsemixer"
        refuse_unless(self, samples, "scoring_func='sparsemixer'", ("sparsemixer_jitter_eps",))
        refuse_unless(
            self,
            not samples,
            "a scoring_func other than 'sparsemixer'",
            ("score_after_topk", "norm_topk_prob", "n_group", "use_score_correction_bias"),
        )
        refuse_unless(self, not self.score_after_topk, "score_after_topk=False", ("n_group",))
        refuse_unless(self, bool(self.norm_topk_prob), "norm_topk_prob=True", ("norm_topk_eps", "norm_topk_min"))
        refuse_unless(self, bool(self.router_input_norm), "router_input_norm=True", ("router_input_multiplier",))

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
        if self.group_score == "top2_sum" and size < 2:
            raise ValueError(f"group_score='top2_sum' needs groups of two experts, n_group={self.n_group} leaves one.")

    def _validate_shared_experts(self):
        refuse_unless(self, self.n_shared_experts > 0, "n_shared_experts", SHARED_FIELDS)
