"""The text model of Aria (Rhymes AI 2024, arXiv 2410.05993): Llama whose layers all have experts beside a shared MLP;
experts are chosen by their logits and weighed by a softmax over them."""

from dataclasses import replace

from ..engine.family import Keys, Theirs, restore_rope, rope
from ..engine.rules import Rule, Transpose, renames
from ..errors import ConversionError
from .llama import FAMILY as LLAMA
from .shared_experts import NO_SHARED_EXPERTS, tiny_experts

EXPERTS = "model.layers.{i}.mlp.experts."
COUNTS = {
    "moe_num_experts": "num_experts", "moe_topk": "num_experts_per_tok", "moe_num_shared_experts": "n_shared_experts",
}  # fmt: skip
TINY = tiny_experts(
    num_experts=..., num_experts_per_tok=..., moe_intermediate_size=..., moe_num_experts=10, moe_topk=3,
    moe_num_shared_experts=2, intermediate_size=28,
)  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    if theirs.hidden_act != "silu":
        raise ConversionError(
            f"hidden_act={theirs.hidden_act!r}: transformers' routed experts are silu whatever it says, its shared "
            "ones are not: set silu."
        )
    return {"rope_parameters": rope(theirs)}


FAMILY = replace(
    LLAMA,
    fields=LLAMA.fields | COUNTS,
    fixed={"router.score_after_topk": True, "precision.router": "activation", "precision.router_weights": "activation"},
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[
        NO_SHARED_EXPERTS,
        Rule(EXPERTS + "fc1.weight", EXPERTS + "gate_up_proj", Transpose(1, 2)),
        Rule(EXPERTS + "fc2.weight", EXPERTS + "down_proj", Transpose(1, 2)),
        *renames({"mlp.router": "mlp.gate"}),
        *LLAMA.rules,
    ],
    tiny=[
        TINY,
        TINY
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "moe_num_shared_experts": 1}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ],
)
