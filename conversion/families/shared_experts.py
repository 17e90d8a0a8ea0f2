"""What families with experts share: fields, router settings, which layers are sparse, how stored experts are named."""

from typing import Any

from ..engine.family import Keys, Ours, Theirs
from ..engine.prediction import BESIDE, KeepPrediction
from ..engine.rules import Empty, Keep, Rule, renames
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, expert_rules, restore_window_fields, tiny

MOE_FIELDS = LLAMA_FIELDS | {
    "num_experts_per_tok": "num_experts_per_tok", "output_router_logits": "output_router_logits",
}  # fmt: skip
AUX_LOSS = {"router_aux_loss_coef": "router_aux_loss_coef"}

# Sigmoid scores with a selection bias, all in float32 (DeepSeek-V3 and its many heirs).
SIGMOID_ROUTER = {"scoring_func": "sigmoid", "use_score_correction_bias": True, "precision.router": "float32_linear"}
SIGMOID_NAMES = ("moe_intermediate_size", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor")
SIGMOID_FIELDS = MOE_FIELDS | {name: name for name in SIGMOID_NAMES}

# Small numbers of experts for the tests, different from every other size and from their doubles.
EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 28}
GROUPS = {"n_group": 5, "topk_group": 2}


def tiny_experts(**changes: Any) -> dict[str, Any]:
    """`tiny` with ten experts, three per token, under the most common names; `...` takes one away."""
    return tiny(**({"num_experts": 10} | EXPERTS | changes))


# `block_sparse_moe`, w1 = gate, w3 = up, w2 = down (Mixtral), beside the names transformers has in memory.
MIXTRAL_RULES = [
    *expert_rules("model.layers.{i}.block_sparse_moe.experts.{e}.", "w1", "w3", "w2"),
    *renames({"block_sparse_moe.gate": "mlp.gate"}),
    Rule("model.layers.{i}.block_sparse_moe.experts.{gate_up_proj|down_proj}",
         "model.layers.{i}.mlp.experts.{gate_up_proj|down_proj}"),
]  # fmt: skip

# Layers that predict further tokens, outside the model's own.
MTP_HEADS = [KeepPrediction("mtp{*}", BESIDE), Keep("model.mtp{*}")]


def has_no_shared_expert(ctx: Any) -> bool:
    return not (ctx.config.n_shared_experts or ctx.config.shared_expert_intermediate_size)


# Without shared experts transformers builds some of no channel.
NO_SHARED_EXPERTS = Empty("model.layers.{i}.mlp.shared_experts.{*}", where=has_no_shared_expert)
QWEN_MOE_RULES = [NO_SHARED_EXPERTS, *expert_rules(), *LLAMA_RULES]


def correction_bias(*places: str) -> list[Rule]:
    """The selection bias, stored at one of several places of an MLP; an export uses the first."""
    ours = "model.layers.{i}.mlp.gate.e_score_correction_bias"
    return [Rule(f"model.layers.{{i}}.{place}", ours) for place in places]


def normed(theirs: Theirs) -> Keys:
    """Weights that sum to one without an epsilon, where `norm_topk_prob` asks for it."""
    on = bool(theirs.norm_topk_prob)
    return {"norm_topk_prob": on, "router.norm_topk_eps": 0.0 if on else None}


def restore_set_window(ours: Ours) -> Keys:
    """`restore_window_fields` for classes that want a window even where nothing slides."""
    return {name: value for name, value in restore_window_fields(ours).items() if value is not None}


def dense_first(count: int | None, layers: int) -> list[str]:
    """`mlp_layer_types` of a model whose first `count` layers are dense."""
    return ["dense" if index < (count or 0) else "sparse" for index in range(layers)]


def leading_dense(ours: Any) -> int:
    """How many layers are dense before the first sparse one, if there is any."""
    return [*ours.mlp_layer_types, "sparse"].index("sparse")


def stepped(theirs: Theirs) -> Keys:
    """`mlp_layer_types` from `decoder_sparse_step` and `mlp_only_layers` (Qwen)."""
    step, dense = theirs.decoder_sparse_step, theirs.mlp_only_layers or []
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(theirs.num_hidden_layers)]
    return {"mlp_layer_types": ["sparse" if one else "dense" for one in sparse]}


def restore_stepped(ours: Ours) -> Keys:
    """The inverse of `stepped`: every dense layer by its number."""
    dense = [index for index, mlp in enumerate(ours.mlp_layer_types) if mlp == "dense"]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
