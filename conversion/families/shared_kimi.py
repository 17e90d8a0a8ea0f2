"""Kimi K3's config: keys and defaults of the published code, and what follows from them."""

from collections.abc import Callable
from functools import partial

import torch

from ..engine.family import Keys, Ours, Theirs
from .shared_gpt import require

DEFAULTS = {
    "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 33792, "num_hidden_layers": 93,
    "num_attention_heads": 96, "num_key_value_heads": 96, "hidden_act": "situ", "initializer_range": 0.02,
    "rms_norm_eps": 1e-5, "use_cache": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False, "moe_intermediate_size": 3072, "moe_renormalize": True, "num_experts": 896,
    "moe_router_activation_func": "sigmoid", "num_experts_per_token": 16, "num_shared_experts": 2,
    "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_expert_group": 1,
    "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "mla_use_nope": True, "mla_use_output_gate": True, "linear_attn_config": None,
    "attn_res_block_size": 12, "latent_moe_use_norm": True, "activation_situ_beta": 4.0,
    "activation_situ_linear_beta": 25.0, "max_position_embeddings": 1048576, "routed_expert_hidden_size": None,
}  # fmt: skip
# As published, for a config that says nothing of it: three layers in four, and not the last.
DELTA = {
    "kda_layers": [layer for layer in range(1, 93) if layer % 4], "num_heads": 96, "head_dim": 128,
    "short_conv_kernel_size": 4, "gate_lower_bound": -5.0, "use_full_rank_gate": True,
}  # fmt: skip
UNIT = {"gate_softcap": "activation_situ_beta", "up_softcap": "activation_situ_linear_beta"}


def derive(theirs: Theirs) -> Keys:
    require(theirs, mla_use_nope=True, hidden_act="situ", attention_bias=False)
    delta, count = theirs.linear_attn_config or DELTA, theirs.num_hidden_layers
    sparse = [index >= theirs.first_k_dense_replace and index % theirs.moe_layer_freq == 0 for index in range(count)]
    recurrent = [index + 1 in delta["kda_layers"] for index in range(count)]
    # The published code reads a bound that is missing or 0 as 1.
    keys = {"swiglu_config.gate_softcap": theirs.activation_situ_beta or 1.0}
    keys["swiglu_config.up_softcap"] = theirs.activation_situ_linear_beta
    keys |= {
        "layer_types": ["linear_attention" if one else "full_attention" for one in recurrent],
        "mlp_layer_types": ["sparse" if one else "dense" for one in sparse],
        "attn_output_gate": "elementwise" if theirs.mla_use_output_gate else None,
    }
    if any(recurrent):
        width, bound = delta["head_dim"], delta.get("gate_lower_bound")
        keys |= {f"linear_num_{x}_heads": delta["num_heads"] for x in ("key", "value")}
        keys |= {f"linear_{x}_head_dim": width for x in ("key", "value")}
        keys |= {
            "linear_attention_type": "kimi_delta_attention", "linear_attn_config.act": "silu",
            "linear_conv_kernel_dim": delta["short_conv_kernel_size"], "linear_attn_config.decay_rank": width,
            "linear_attn_config.gate_rank": None if delta.get("use_full_rank_gate") else width,
            "linear_attn_config.decay": "softplus" if bound is None else "bounded_sigmoid",
            "linear_attn_config.lower_bound": bound,
        }  # fmt: skip
    return keys


def restore(ours: Ours) -> Keys:
    kinds = [
        [index + 1 for index, kind in enumerate(ours.layer_types) if (kind == "full_attention") is full]
        for full in (True, False)
    ]
    delta = {"full_attn_layers": kinds[0], "kda_layers": kinds[1]}
    if kinds[1]:
        own = ours.linear_attn_config
        delta |= {"num_heads": ours.linear_num_value_heads, "head_dim": ours.linear_key_head_dim}
        delta |= {"short_conv_kernel_size": ours.linear_conv_kernel_dim, "gate_lower_bound": own["lower_bound"]}
        delta |= {"use_full_rank_gate": own["gate_rank"] is None}
    keys = {name: ours.swiglu_config[key] for key, name in UNIT.items()} | {"hidden_act": "situ"}
    return keys | {
        "linear_attn_config": delta,
        "mla_use_nope": True,
        "mla_use_output_gate": ours.attn_output_gate is not None,
        "first_k_dense_replace": [*ours.mlp_layer_types, "sparse"].index("sparse"),
    }


def buffers(ours: Ours, raw: Keys) -> dict[str, Callable]:
    """What the first mixer would choose by, had it more than the embedding to read."""
    name, size = "model.layers.0.self_attention_res_", ours.hidden_size
    return {f"{name}norm.weight": partial(torch.ones, size), f"{name}proj.weight": partial(torch.zeros, 1, size)}
