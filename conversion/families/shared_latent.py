"""What families with latent attention share: fields, the DeepSeek-V3 layer, the indexer, small sizes for the tests."""

from typing import Any

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, PREDICTION_LAYERS, tiny
from .shared_experts import GROUPS, QWEN_MOE_RULES, SIGMOID_FIELDS, SIGMOID_ROUTER, dense_first, leading_dense

RANKS = {
    name: name
    for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "attention_bias")
}


def with_ranks(fields: dict[str, str]) -> dict[str, str]:
    """`fields` and those of latent attention, where both parts of a head have a width of their own."""
    return {name: ours for name, ours in fields.items() if name != "head_dim"} | RANKS


LATENT_FIELDS = with_ranks(LLAMA_FIELDS)
LATENT = {"attention_type": "latent"}
SHARING = {"n_routed_experts": "num_experts", "n_shared_experts": "n_shared_experts"}

V3_FIELDS = with_ranks(SIGMOID_FIELDS) | SHARING
V3_FIXED = LATENT | SIGMOID_ROUTER
V3_RULES = [*PREDICTION_LAYERS, *QWEN_MOE_RULES]
INDEX_FIELDS = {name: name for name in ("index_topk", "index_n_heads", "index_head_dim", "layer_types")}

YARN = {
    "rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 0.9,
}  # fmt: skip


def leading(theirs: Theirs) -> Keys:
    """`mlp_layer_types` from `first_k_dense_replace`, and the rotation."""
    layers = dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)
    return {"mlp_layer_types": layers, "rope_parameters": rope(theirs)}


def restore_leading(ours: Ours) -> Keys:
    """The inverse of `leading`."""
    return {"first_k_dense_replace": leading_dense(ours), "rope_parameters": restore_rope(ours)}


def listed(theirs: Theirs) -> Keys:
    """`mlp_layer_types` as they are, and the rotation."""
    return {"mlp_layer_types": list(theirs.mlp_layer_types), "rope_parameters": rope(theirs)}


def restore_listed(ours: Ours) -> Keys:
    """The inverse of `listed`."""
    return {"mlp_layer_types": list(ours.mlp_layer_types), "rope_parameters": restore_rope(ours)}


def tiny_latent(**changes: Any) -> dict[str, Any]:
    """`tiny` with latent attention; every width differs from every other."""
    ranks = {"kv_lora_rank": 20, "q_lora_rank": 26, "qk_nope_head_dim": 14, "qk_rope_head_dim": 6, "v_head_dim": 11}
    return tiny(**({"num_key_value_heads": 6, "head_dim": ...} | ranks | changes))


def tiny_v3(**changes: Any) -> dict[str, Any]:
    """`tiny_latent` with ten experts in five groups, two of them shared experts' width."""
    experts = {"n_routed_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 28, "n_shared_experts": 2}
    return tiny_latent(**(experts | GROUPS | changes))


def tiny_indexed(**changes: Any) -> dict[str, Any]:
    """`tiny_v3` with an indexer that leaves keys out; with few of its heads, scores of zero would tie."""
    return tiny_v3(**({"index_topk": 5, "index_n_heads": 18, "index_head_dim": 10} | changes))
