"""The text model of DeepSeek-OCR 2 (DeepSeek-AI 2026): the experts of DeepSeek-V2 behind the attention of Llama."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .deepseek_v2 import GREEDY, LIMITED
from .shared_experts import MOE_FIELDS, QWEN_MOE_RULES, dense_first

NAMES = ("attention_bias", "mlp_bias", "moe_intermediate_size", "n_shared_experts", "routed_scaling_factor")


def derive(theirs: Theirs) -> Keys:
    # Where no file says which layers are dense, the key of the original configuration does.
    first = getattr(theirs, "first_k_dense_replace", 0)
    mlps = theirs.mlp_layer_types or dense_first(first, theirs.num_hidden_layers)
    fields = {"rope_parameters": rope(theirs), "mlp_layer_types": list(mlps)}
    if theirs.topk_method == LIMITED:
        fields |= {"n_group": theirs.n_group, "topk_group": theirs.topk_group}
        fields |= {"router.group_score": "max", "router.group_mask_value": "zero"}
    return fields


def restore(ours: Ours) -> Keys:
    keys = {"rope_parameters": restore_rope(ours), "mlp_layer_types": list(ours.mlp_layer_types)}
    if ours.n_group is None:
        return keys | {"topk_method": GREEDY}
    return keys | {"topk_method": LIMITED, "n_group": ours.n_group, "topk_group": ours.topk_group}


FAMILY = Family(
    fields=MOE_FIELDS | {name: name for name in NAMES} | {"n_routed_experts": "num_experts"},
    fixed={"precision.router": "float32_linear", "norm_topk_prob": False},
    derive=derive,
    restore=restore,
    rules=QWEN_MOE_RULES,
)
