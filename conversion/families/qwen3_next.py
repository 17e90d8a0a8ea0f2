"""Qwen3-Next (Qwen team 2025): three layers of gated delta rule to one of gated attention, and very many experts.

Queries, keys, values and gates of the delta rule are stored together, key head by key head, as are the two numbers of
every value head that say how much it writes and forgets.
"""

from ..engine.family import Family
from ..engine.rules import Split, renames
from .qwen2_moe import SHARED
from .shared_experts import (
    AUX_LOSS,
    MOE_FIELDS,
    MTP_HEADS,
    QWEN_MOE_RULES,
    normed,
    restore_stepped,
    stepped,
    tiny_experts,
)
from .shared_linear import (
    DELTA_RULES,
    GATED_HYBRID,
    GROUP,
    LAYER,
    MIXER,
    TINY_DELTA,
    gated_hybrid,
    recurrent_rule,
    restore_gated_hybrid,
)

KEY, HEADS, VALUE_HEADS = "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads/linear_num_key_heads"
TINY = TINY_DELTA | {"shared_expert_intermediate_size": 36}

FAMILY = Family(
    fields=MOE_FIELDS
    | AUX_LOSS
    | {
        name: name
        for name in (
            "attention_bias", "num_experts", "moe_intermediate_size", "norm_topk_prob",
            "shared_expert_intermediate_size",
        )
    },
    fixed=GATED_HYBRID
    | {"precision.router_weights": "activation", "shared_expert_gate": True},
    derive=lambda theirs: gated_hybrid(theirs) | stepped(theirs) | normed(theirs),
    restore=lambda ours: restore_gated_hybrid(ours) | restore_stepped(ours),
    rules=[
        recurrent_rule(
            f"{LAYER}linear_attn.in_proj_qkvz.weight", [f"{MIXER}{x}_proj.weight" for x in "qkvg"],
            Split(KEY, KEY, GROUP, GROUP, groups=HEADS),
        ),
        recurrent_rule(
            f"{LAYER}linear_attn.in_proj_ba.weight", [f"{MIXER}{x}_proj.weight" for x in "ba"],
            Split(VALUE_HEADS, VALUE_HEADS, groups=HEADS),
        ),
        *DELTA_RULES, *MTP_HEADS, *renames(SHARED), *QWEN_MOE_RULES,
    ],
    tiny=[
        tiny_experts(**TINY),
        tiny_experts(
            **TINY | {"num_hidden_layers": 3, "linear_num_key_heads": 4}, mlp_only_layers=[1], norm_topk_prob=False,
            layer_types=["linear_attention", "full_attention", "linear_attention"], linear_conv_kernel_dim=3,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-2, hidden_act="gelu",
            router_aux_loss_coef=0.02,
        ),
        tiny_experts(**TINY, layer_types=["full_attention"] * 4, decoder_sparse_step=2),
    ],
)  # fmt: skip
