"""Command A+ (Cohere 2025): Command A with experts, the first layers dense; routed and shared output are averaged."""

from ..engine.family import Family, Keys, Ours, Theirs
from .cohere import FIXED
from .cohere import derive as cohere
from .cohere import restore as restore_cohere
from .shared_common import restore_window_fields, window_fields
from .shared_experts import MOE_FIELDS, QWEN_MOE_RULES, tiny_experts

ABSENT = ("intermediate_size", "rms_norm_eps")
STRATEGY = "shared_expert_combination_strategy"


def _rotates(theirs):
    dense_too = theirs.prefix_dense_sliding_window_pattern == 1
    rotates = [
        int(layer_type == "sliding_attention" or (dense_too and mlp == "dense"))
        for layer_type, mlp in zip(theirs.layer_types, theirs.mlp_layer_types, strict=True)
    ]
    return None if all(rotates) else rotates


def derive(theirs: Theirs) -> Keys:
    width, sigmoid = theirs.intermediate_size, theirs.expert_selection_fn == "sigmoid"
    dense_width = theirs.prefix_dense_intermediate_size
    fields = {
        "intermediate_size": width if dense_width is None else dense_width, "moe_intermediate_size": width,
        "norm_eps": theirs.layer_norm_eps, "no_rope_layers": _rotates(theirs),
        STRATEGY: getattr(theirs, STRATEGY) if theirs.num_shared_experts else None,
    }  # fmt: skip
    if theirs.rms_norm_eps is not None:
        fields |= {"norm_type": "rms_norm", "precision.norm": None, "norm_bias": None, "norm_eps": theirs.rms_norm_eps}
    if sigmoid:
        on = theirs.norm_topk_prob
        fields |= {"precision.router": "activation", "norm_topk_prob": on, "router.norm_topk_eps": 0.0 if on else None}
    return cohere(theirs) | window_fields(theirs) | fields


def restore(ours: Ours) -> Keys:
    norm = "rms_norm_eps" if ours.norm_type == "rms_norm" else "layer_norm_eps"
    rotates = ours.no_rope_layers or [1] * ours.num_hidden_layers
    layers = zip(ours.layer_types, ours.mlp_layer_types, rotates, strict=True)
    dense_too = any(turns and mlp == "dense" and layer_type == "full_attention" for layer_type, mlp, turns in layers)
    fields = {"intermediate_size": ours.moe_intermediate_size, norm: ours.norm_eps}
    fields |= {"prefix_dense_intermediate_size": ours.intermediate_size}
    fields |= {"prefix_dense_sliding_window_pattern": 1 if dense_too else 4}
    if ours.scoring_func == "sigmoid":
        fields["norm_topk_prob"] = ours.norm_topk_prob
    if ours.n_shared_experts:
        fields[STRATEGY] = getattr(ours, STRATEGY)
    return restore_cohere(ours) | restore_window_fields(ours) | fields


TINY = tiny_experts(
    moe_intermediate_size=..., intermediate_size=28, prefix_dense_intermediate_size=80, sliding_window=5,
    pad_token_id=0, num_hidden_layers=5, num_shared_experts=2,
)  # fmt: skip
SHORT = {
    "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "mlp_layer_types": ["dense", "dense", "sparse"], "prefix_dense_sliding_window_pattern": 4,
}  # fmt: skip

FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name not in ABSENT}
    | {
        "attention_bias": "attention_bias", "num_experts": "num_experts", "num_shared_experts": "n_shared_experts",
        "mlp_layer_types": "mlp_layer_types", "expert_selection_fn": "scoring_func",
    },
    fixed=FIXED | {"router.score_after_topk": True, "precision.router_weights": "activation"},
    derive=derive,
    restore=restore,
    rules=QWEN_MOE_RULES,
    tiny=[
        TINY | {"first_k_dense_replace": 1},
        TINY | SHORT | {"expert_selection_fn": "sigmoid", "rms_norm_eps": 1e-6, STRATEGY: "sum"},
        TINY
        | {"num_shared_experts": 0, "expert_selection_fn": "sigmoid", "norm_topk_prob": False, "attention_bias": True}
        | {"tie_word_embeddings": False},
    ],
)  # fmt: skip
