"""Trinity (Arcee AI 2025): norms on both sides of each sub-layer, gated attention output, rotation where a layer
slides."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import renames
from .shared_common import ROPE_BUFFERS, expert_rules, restore_window_fields, window_fields
from .shared_experts import MOE_FIELDS, NO_SHARED_EXPERTS, correction_bias, dense_first, leading_dense, tiny_experts

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "attn_output_norm", "pre_mlp_layernorm": "mlp_norm",
    "post_mlp_layernorm": "mlp_output_norm", "self_attn.gate_proj": "self_attn.output_gate.g_proj",
    "mlp.router.gate": "mlp.gate",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    rotates = [int(layer_type == "sliding_attention") for layer_type in theirs.layer_types]
    return window_fields(theirs) | {
        "rope_parameters": rope(theirs),
        "no_rope_layers": rotates,
        "mlp_layer_types": dense_first(theirs.num_dense_layers, theirs.num_hidden_layers),
        "embedding_multiplier": theirs.hidden_size**0.5 if theirs.mup_enabled else 1.0,
    }


def restore(ours: Ours) -> Keys:
    fields = {"num_dense_layers": leading_dense(ours), "mup_enabled": ours.embedding_multiplier != 1}
    return {"rope_parameters": restore_rope(ours)} | restore_window_fields(ours) | fields


FAMILY = Family(
    fields=MOE_FIELDS
    | {
        "attention_bias": "attention_bias", "num_experts": "num_experts", "num_shared_experts": "n_shared_experts",
        "moe_intermediate_size": "moe_intermediate_size", "route_scale": "routed_scaling_factor",
    },
    fixed={
        "block_type": "sandwich_norm", "qk_norm": "rms_norm", "attn_output_gate": "elementwise",
        "scoring_func": "sigmoid", "use_score_correction_bias": True,
    },
    derive=derive,
    restore=restore,
    rules=[NO_SHARED_EXPERTS, *renames(NAMES), *correction_bias("mlp.expert_bias"), *expert_rules(), *ROPE_BUFFERS],
    tiny=[
        tiny_experts(num_hidden_layers=5, sliding_window=5, mup_enabled=True, route_scale=1.7),
        tiny_experts(
            sliding_window=4, layer_types=["full_attention", "sliding_attention", "full_attention"],
            attention_bias=True, num_dense_layers=2, num_shared_experts=1, tie_word_embeddings=True,
        ),
    ],
)  # fmt: skip
