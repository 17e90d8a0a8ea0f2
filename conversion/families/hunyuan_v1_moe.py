"""Hunyuan-A13B (Tencent 2025): the dense Hunyuan with routed experts beside one that every token visits."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .hunyuan_v1_dense import FAMILY as HUNYUAN
from .shared_common import expert_rules
from .shared_experts import MOE_FIELDS, tiny_experts

SHARED = {f"mlp.shared_mlp.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}


def derive(theirs: Theirs) -> Keys:
    counts = theirs.moe_topk if isinstance(theirs.moe_topk, list) else [theirs.moe_topk]
    fields = {"num_experts_per_tok": counts[0], "shared_expert_intermediate_size": theirs.intermediate_size}
    if len(set(counts)) > 1:
        fields["per_layer_config"] = {index: {"num_experts_per_tok": count} for index, count in enumerate(counts)}
    return HUNYUAN.derive(theirs) | fields


def restore(ours: Ours) -> Keys:
    counts = [layer.num_experts_per_tok for layer in ours.per_layer_config]
    return HUNYUAN.restore(ours) | {"moe_topk": counts if len(set(counts)) > 1 else counts[0]}


TINY = tiny_experts(num_experts_per_tok=..., moe_topk=3, moe_intermediate_size=..., intermediate_size=28)

FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name != "num_experts_per_tok"}
    | {"attention_bias": "attention_bias", "num_experts": "num_experts"},
    fixed=HUNYUAN.fixed | {"router.norm_topk_eps": 0.0, "precision.router": "float32_weight"},
    derive=derive,
    restore=restore,
    rules=[*renames(SHARED | {"mlp.gate.wg": "mlp.gate"}), *expert_rules(), *HUNYUAN.rules],
    tiny=[
        TINY,
        TINY | HUNYUAN.tiny[1] | {"moe_topk": [1, 4, 2], "intermediate_size": 28},
    ],
)
