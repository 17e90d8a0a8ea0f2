"""Granite 3 MoE (IBM 2024): Granite with experts that are chosen by their logits and weighed by a softmax over them."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import Rule, renames
from ..errors import ConversionError
from .granite import FIELDS, restore
from .granite import derive as derive_dense
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MOE_FIELDS, tiny_experts

MOE, OURS = "model.layers.{i}.block_sparse_moe.", "model.layers.{i}.mlp."
# As transformers holds it in memory.
IN_MEMORY = [
    Rule(MOE + "experts.{gate_up_proj|down_proj}", OURS + "experts.{gate_up_proj|down_proj}"),
    *renames({"router": "gate"}, MOE, OURS),
]
RULES = [
    Rule(MOE + "input_linear.weight", OURS + "experts.gate_up_proj"),
    Rule(MOE + "output_linear.weight", OURS + "experts.down_proj"),
    *renames({"router.layer": "gate"}, MOE, OURS),
    *IN_MEMORY,
    *LLAMA_RULES,
]
TINY = tiny_experts(
    num_experts=..., num_local_experts=10, head_dim=..., moe_intermediate_size=..., intermediate_size=28
)
SCALES = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.17,
    "logits_scaling": 8.0,
}


def derive(theirs: Theirs) -> Keys:
    if not theirs.num_local_experts:
        raise ConversionError(
            f"num_local_experts={theirs.num_local_experts}: every layer of such a model has experts; a dense one is "
            "a 'granite'."
        )
    return derive_dense(theirs)


FAMILY = Family(
    fields={name: ours for name, ours in FIELDS.items() if name != "mlp_bias"}
    | MOE_FIELDS
    | AUX_LOSS
    | {"num_local_experts": "num_experts"},
    fixed={"router.score_after_topk": True, "precision.router_weights": "activation"},
    derive=derive,
    restore=restore,
    rules=RULES,
    tiny=[TINY | SCALES, TINY | {"tie_word_embeddings": True, "attention_bias": True, "router_aux_loss_coef": 0.02}],
)
