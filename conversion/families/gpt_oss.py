"""gpt-oss 20b and 120b (OpenAI 2025): sinks in every layer, every other one sliding, clamped experts with biases.

Their experts are stored `[E, in, out]`, gate and up interleaved. A checkpoint in MXFP4 has to be dequantised first.
"""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import Deinterleave, Rule, Transpose, renames
from .shared_common import LLAMA_RULES, window_fields
from .shared_experts import AUX_LOSS, MOE_FIELDS, restore_set_window, tiny_experts

EXPERTS = "model.layers.{i}.mlp.experts."
TINY = tiny_experts(num_experts=..., num_local_experts=10, moe_intermediate_size=..., intermediate_size=28)
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}

FAMILY = Family(
    fields={name: ours for name, ours in (MOE_FIELDS | AUX_LOSS).items() if name != "hidden_act"}
    | {
        "num_local_experts": "num_experts", "attention_bias": "attention_bias", "swiglu_limit": "swiglu_limit",
        "swiglu_alpha": "swiglu_config.alpha",
    },
    fixed={
        "precision.norm": "scale_then_cast", "attention_sinks": "all", "router.score_after_topk": True,
        "router.bias": True, "precision.router": "activation", "precision.router_weights": "activation",
        "expert_bias": True, "swiglu_config.up_offset": 1.0,
    },
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | window_fields(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours)} | restore_set_window(ours),
    rules=[
        *renames({"mlp.router": "mlp.gate"}),
        Rule(EXPERTS + "gate_up_proj", EXPERTS + "gate_up_proj", Transpose(), Deinterleave(dim=1)),
        Rule(EXPERTS + "gate_up_proj_bias", EXPERTS + "gate_up_proj_bias", Deinterleave(dim=1)),
        Rule(EXPERTS + "down_proj", EXPERTS + "down_proj", Transpose()),
        *LLAMA_RULES,
    ],
    tiny=[
        TINY | {"sliding_window": 5, "swiglu_limit": 1.1, "rope_parameters": YARN | {"truncate": False}},
        TINY
        | {
            "layer_types": ["full_attention"] * 3, "attention_bias": False, "tie_word_embeddings": True,
            "swiglu_limit": 0.8, "swiglu_alpha": 1.3, "router_aux_loss_coef": 0.9, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ],
)  # fmt: skip
