"""ERNIE 4.5 21B-A3B and 300B-A47B (Baidu 2025): ERNIE 4.5 with routed and shared experts.

A softmax is biased for the selection; the divisor of the weights has a lower bound instead of an epsilon.
"""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Reshape, Rule
from .ernie4_5 import FAMILY as ERNIE
from .shared_experts import AUX_LOSS, MOE_FIELDS, MTP_HEADS, QWEN_MOE_RULES, tiny_experts

BIAS, OURS = "moe_statics.e_score_correction_bias", "model.layers.{i}.mlp.gate.e_score_correction_bias"


def derive(theirs: Theirs) -> Keys:
    reached = range(theirs.moe_layer_start_index, theirs.moe_layer_end_index + 1)
    sparse = [
        index in reached and (index + 1) % theirs.moe_layer_interval == 0 for index in range(theirs.num_hidden_layers)
    ]
    fields = {"mlp_layer_types": ["sparse" if one else "dense" for one in sparse], "lm_head_bias": theirs.use_bias}
    return ERNIE.derive(theirs) | fields


def restore(ours: Ours) -> Keys:
    sparse = [index for index, mlp in enumerate(ours.mlp_layer_types) if mlp == "sparse"] or [ours.num_hidden_layers]
    step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    span = {"moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1], "moe_layer_interval": step}
    return ERNIE.restore(ours) | span


ABSENT = ("attention_dropout", "num_experts_per_tok")
TINY = tiny_experts(num_experts=..., moe_num_experts=10, num_experts_per_tok=..., moe_k=3, pad_token_id=0)

FAMILY = Family(
    fields={name: ours for name, ours in (MOE_FIELDS | AUX_LOSS).items() if name not in ABSENT}
    | {
        "use_bias": "attention_bias", "moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok",
        "moe_intermediate_size": "moe_intermediate_size", "moe_num_shared_experts": "n_shared_experts",
        "moe_norm_min": "router.norm_topk_min",
    },
    fixed=ERNIE.fixed
    | {
        "use_score_correction_bias": True, "router.norm_topk_eps": 0.0, "precision.router": "float32_weight",
        "precision.router_weights": "activation",
    },
    derive=derive,
    restore=restore,
    rules=[
        *(
            Rule(f"model.layers.{{i}}.mlp.{place}{BIAS}", OURS, Reshape((1, "num_experts"), ("num_experts",)))
            for place in ("", "gate.")
        ),
        *MTP_HEADS,
        *QWEN_MOE_RULES,
    ],
    tiny=[
        TINY,
        TINY
        | {
            "use_bias": True, "num_hidden_layers": 5, "moe_layer_interval": 2, "moe_layer_start_index": 0,
            "moe_layer_end_index": 3, "moe_num_shared_experts": 1, "tie_word_embeddings": False,
        },
    ],
)  # fmt: skip
