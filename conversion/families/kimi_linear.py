"""Kimi Linear (Moonshot AI 2025, arXiv 2510.26692): three layers whose state forgets channel by channel to one of
latent attention without positions, and DeepSeek-V3's experts.

Projections of forgetting and of the output's gate go through a head's width; config.json counts layers from one.
"""

from ..engine.family import Family, Keys, Theirs
from ..engine.ops import Op
from ..engine.rules import Concat, Reshape, Rule
from .shared_experts import MIXTRAL_RULES, QWEN_MOE_RULES, SIGMOID_FIELDS
from .shared_latent import V3_FIXED, tiny_v3, with_ranks
from .shared_linear import ATTENTION, KEYS, LAYER, MIXER, kimi_delta, recurrent_rule, restore_kimi_delta


def derive(theirs: Theirs) -> Keys:
    fields = kimi_delta(theirs)
    if "linear_attention_type" in fields:
        fields |= {
            "linear_attn_config.decay_rank": theirs.linear_head_dim,
            "linear_attn_config.gate_rank": theirs.linear_head_dim,
        }
    return fields


def moved(theirs: str, ours: str, *ops: Op) -> list[Rule]:
    """Rules for a tensor that files have in the mixer and transformers in its `forget_gate`."""
    return [recurrent_rule(f"{ATTENTION}{place}{theirs}", f"{MIXER}{ours}", *ops) for place in ("", "forget_gate.")]


SPLIT_CONVOLUTION = recurrent_rule(
    [f"{ATTENTION}{x}_conv1d.weight" for x in "qkv"], f"{MIXER}conv1d.weight", Concat(KEYS, KEYS, KEYS)
)
RULES = [
    SPLIT_CONVOLUTION,
    *moved("A_log", "A_log", Reshape((1, 1, "linear_num_value_heads", 1), ("linear_num_value_heads",))),
    *moved("dt_bias", "dt_bias"),
    *moved("f_a_proj.weight", "a_proj.0.weight"),
    *moved("f_b_proj.weight", "a_proj.1.weight"),
    recurrent_rule(f"{ATTENTION}g_a_proj.weight", f"{MIXER}g_proj.0.weight"),
    recurrent_rule(f"{ATTENTION}g_b_proj.weight", f"{MIXER}g_proj.1.weight"),
    recurrent_rule(f"{ATTENTION}{{*}}", f"{MIXER}{{*}}"),
]
TINY = tiny_v3(
    n_routed_experts=..., first_k_dense_replace=..., q_lora_rank=None, num_local_experts=10, num_hidden_layers=5,
    linear_num_heads=4, linear_head_dim=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FAMILY = Family(
    fields=with_ranks(SIGMOID_FIELDS) | {"num_local_experts": "num_experts", "n_shared_experts": "n_shared_experts"},
    fixed=V3_FIXED | {"position_embedding_type": "none"},
    derive=derive,
    restore=restore_kimi_delta,
    rules=[
        *RULES,
        *MIXTRAL_RULES,
        Rule(f"{LAYER}mlp.{{*}}", f"{LAYER}mlp.{{*}}", where=lambda ctx: ctx.layer_entry("mlp_layer_types") == "dense"),
        Rule(f"{LAYER}block_sparse_moe.{{*}}", f"{LAYER}mlp.{{*}}"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        TINY,
        TINY | {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"], "num_hidden_layers": 3,
            "mlp_layer_types": ["sparse", "dense", "sparse"], "linear_conv_kernel_dim": 3, "q_lora_rank": 26,
            "attention_bias": True, "rms_norm_eps": 1e-3, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
            "routed_scaling_factor": 1.7, "hidden_act": "gelu",
        },
    ],
)  # fmt: skip
