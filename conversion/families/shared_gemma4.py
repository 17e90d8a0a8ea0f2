"""Gemma 4's tensors: norms and experts beside the MLP, rows per layer, maps that no layer uses; and its test sizes."""

from ..engine.rules import Keep, Rule, renames
from .gemma2 import NORMS
from .shared_common import ROPE_BUFFERS

FULL = "full_attention"
LAYER = "model.layers.{i}."
EXPERT_NORMS = {
    "post_feedforward_layernorm_1": "mlp_branch_norm", "pre_feedforward_layernorm_2": "moe_norm",
    "post_feedforward_layernorm_2": "moe_output_norm", "router.proj": "moe.gate",
}  # fmt: skip
MODEL_ROWS = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
LAYER_ROWS = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
# Published files hold maps to keys and values for layers that read those of others.
UNUSED = Keep(
    LAYER + "self_attn.{k_proj|v_proj|k_norm|v_norm}.{*}", lambda ctx: ctx.config.shares_key_values(ctx.layer)
)
RULES = [
    UNUSED,
    *renames(NORMS | EXPERT_NORMS),
    *ROPE_BUFFERS,
    Rule(LAYER + "router.scale", LAYER + "moe.gate.norm.weight"),
    Rule(LAYER + "router.per_expert_scale", LAYER + "moe.gate.per_expert_scale"),
    *(Rule(f"model.{name}.weight", f"model.per_layer_embeddings.{name}.weight") for name in MODEL_ROWS),
    *(Rule(LAYER + f"{name}.weight", LAYER + f"per_layer_input.{name}.weight") for name in LAYER_ROWS),
    Rule(LAYER + "experts.{gate_up_proj|down_proj}", LAYER + "moe.experts.{gate_up_proj|down_proj}"),
]

TINY = {"hidden_size_per_layer_input": 0, "sliding_window": 5, "global_head_dim": 20, "num_hidden_layers": 4}
SMALL = {
    "hidden_size_per_layer_input": 14, "vocab_size_per_layer_input": 101, "num_hidden_layers": 5, "head_dim": 6,
    "global_head_dim": 8,
    "layer_types": ["sliding_attention", FULL, "sliding_attention", "sliding_attention", FULL],
}  # fmt: skip
