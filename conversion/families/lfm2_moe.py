"""LFM2-8B-A1B (Liquid AI 2025): LFM2 with experts behind a sigmoid router after the first layers."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import Rule, renames
from .lfm2 import FIELDS, GATED, RULES, TINY, convolutions, restore_convolutions
from .shared_common import expert_rules
from .shared_experts import EXPERTS, correction_bias, dense_first, leading_dense

TINY_EXPERTS = TINY | EXPERTS | {"num_experts": 10}
NAMES = ("intermediate_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "output_router_logits",
         "norm_topk_prob", "routed_scaling_factor")  # fmt: skip
MLP = "model.layers.{i}.feed_forward."


def derive(theirs: Theirs) -> Keys:
    return convolutions(theirs) | {
        "mlp_layer_types": dense_first(theirs.num_dense_layers, theirs.num_hidden_layers),
        "router.norm_topk_eps": 1e-6 if theirs.norm_topk_prob else None,
    }


FAMILY = Family(
    fields=FIELDS | {name: name for name in NAMES} | {"use_expert_bias": "use_score_correction_bias"},
    fixed={
        "qk_norm": "rms_norm", "scoring_func": "sigmoid", "precision.router": "activation",
        "precision.router_weights": "activation",
    },
    derive=derive,
    restore=lambda ours: restore_convolutions(ours) | {"num_dense_layers": leading_dense(ours)},
    rules=[
        *correction_bias("feed_forward.expert_bias"),
        *expert_rules(f"{MLP}experts.{{e}}.", *GATED),
        *renames({"feed_forward.gate": "mlp.gate"}),
        Rule(f"{MLP}experts.{{gate_up_proj|down_proj}}", "model.layers.{i}.mlp.experts.{gate_up_proj|down_proj}"),
        *RULES,
    ],
    tiny=[
        TINY_EXPERTS,
        TINY_EXPERTS | {
            "layer_types": ["full_attention", "conv", "full_attention"], "num_hidden_layers": 3, "conv_bias": True,
            "num_dense_layers": 1, "use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 1.7,
            "tie_word_embeddings": False, "conv_L_cache": 4, "norm_eps": 1e-3,
        },
    ],
)  # fmt: skip
