"""DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024, arXiv 2405.04434): the first latent attention; a softmax router that may
limit a token to the groups with the best experts."""

from ..engine.family import Family, Keys, Ours, Theirs
from .shared_experts import MOE_FIELDS
from .shared_latent import LATENT, SHARING, V3_RULES, YARN, leading, restore_leading, tiny_v3, with_ranks

GREEDY, LIMITED = "greedy", "group_limited_greedy"


def derive(theirs: Theirs) -> Keys:
    fields = leading(theirs)
    if theirs.topk_method == LIMITED:
        fields |= {"n_group": theirs.n_group, "topk_group": theirs.topk_group}
        fields |= {"router.group_score": "max", "router.group_mask_value": "zero"}
    return fields


def restore(ours: Ours) -> Keys:
    if ours.n_group is None:
        return restore_leading(ours) | {"topk_method": GREEDY}
    groups = {"n_group": ours.n_group, "topk_group": ours.topk_group, "topk_method": LIMITED}
    return restore_leading(ours) | groups


FAMILY = Family(
    fields=with_ranks(MOE_FIELDS)
    | SHARING
    | {name: name for name in ("moe_intermediate_size", "routed_scaling_factor", "mlp_bias")},
    # transformers never renormalises, whatever norm_topk_prob says.
    fixed=LATENT
    | {
        "rope_interleave": True, "precision.rope": "float32_qk", "precision.router": "float32_linear",
        "norm_topk_prob": False,
    },
    derive=derive,
    restore=restore,
    rules=V3_RULES,
    tiny=[
        tiny_v3(first_k_dense_replace=1, topk_method=LIMITED, routed_scaling_factor=1.7, rope_parameters=YARN),
        tiny_v3(q_lora_rank=None, topk_method=GREEDY, n_group=1, topk_group=1, n_shared_experts=1),
        tiny_v3(topk_method=GREEDY, n_group=..., topk_group=..., attention_bias=True, tie_word_embeddings=True),
    ],
)  # fmt: skip
