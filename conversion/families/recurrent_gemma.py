"""RecurrentGemma (Gemma team 2024; Griffin, De et al. 2024): two layers with a real-gated linear recurrence to one of
sliding attention, in Gemma's body.

The embeddings' scale is √hidden in bfloat16 whatever the dtype; the width of the MLP counts gate and up.
"""

from math import sqrt

import torch

from ..engine.family import COMMON_FIELDS, Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, renames
from .shared_common import ROPE_BUFFERS, tiny
from .shared_linear import ATTENTION, LAYER, MIXER, recurrent_rule
from .shared_starts import griffin_start

LAYER_TYPES = {"linear_attention": "recurrent", "sliding_attention": "attention"}
OURS = {theirs: ours for ours, theirs in LAYER_TYPES.items()}  # An older transformers gives the names of the file.


def derive(theirs: Theirs) -> Keys:
    layer_types = [OURS.get(layer_type, layer_type) for layer_type in theirs.layers_block_type]
    scale = torch.tensor(sqrt(theirs.hidden_size), dtype=torch.bfloat16, device="cpu").item()
    fields = griffin_start(theirs) | {"embedding_multiplier": scale, "intermediate_size": theirs.intermediate_size // 2}
    fields |= {"layer_types": layer_types, "rope_parameters": rope(theirs, partial=True)}
    if "sliding_attention" in layer_types:
        fields["sliding_window"] = theirs.attention_window_size
    if "linear_attention" in layer_types:
        heads = theirs.num_attention_heads
        fields |= {"linear_num_value_heads": heads, "linear_value_head_dim": theirs.lru_width // heads}
        fields |= {"linear_attention_type": "rg_lru", "linear_conv_kernel_dim": theirs.conv1d_width}
        fields["linear_attn_config.output_gate"] = theirs.hidden_activation
    return fields


def restore(ours: Ours) -> Keys:
    block_types = [LAYER_TYPES[layer_type] for layer_type in ours.layer_types]
    fields = {"intermediate_size": 2 * ours.intermediate_size, "block_types": block_types}
    fields["rope_parameters"] = restore_rope(ours)
    if ours.sliding_window is not None:
        fields["attention_window_size"] = ours.sliding_window
    if ours.linear_attention_type is not None:
        fields["lru_width"] = ours.linear_num_value_heads * ours.linear_value_head_dim
        fields["conv1d_width"] = ours.linear_conv_kernel_dim
    return fields


TINY = tiny(head_dim=..., max_position_embeddings=..., attention_window_size=5, lru_width=60)
UNIT = {"linear_x": "in_proj", "linear_y": "g_proj", "linear_out": "o_proj", "conv_1d": "conv1d"}
ABSENT = ("hidden_act", "intermediate_size", "max_position_embeddings", "head_dim")

FAMILY = Family(
    fields={name: ours for name, ours in COMMON_FIELDS.items() if name not in ABSENT} | {
        "rms_norm_eps": "norm_eps", "attention_bias": "attention_bias", "hidden_activation": "hidden_act",
        "logits_soft_cap": "final_logit_softcapping",
    },
    fixed={"norm_unit_offset": True, "attention_out_bias": True, "mlp_bias": True},
    derive=derive,
    restore=restore,
    rules=[
        *(recurrent_rule(f"{LAYER}temporal_block.{a}.{{w}}", f"{MIXER}{b}.{{w}}") for a, b in UNIT.items()),
        recurrent_rule(f"{LAYER}temporal_block.rg_lru.recurrent_param", f"{MIXER}recurrent_param"),
        recurrent_rule(f"{LAYER}temporal_block.rg_lru.input_gate_{{w}}", f"{MIXER}input_gate.{{w}}"),
        recurrent_rule(f"{LAYER}temporal_block.rg_lru.recurrent_gate_{{w}}", f"{MIXER}recurrence_gate.{{w}}"),
        Rule(f"{LAYER}temporal_block.{{*}}", f"{ATTENTION}{{*}}"),
        *renames({"temporal_pre_norm": "attn_norm", "channel_pre_norm": "mlp_norm"}),
        *renames({f"mlp_block.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
        *renames({"final_norm": "norm"}, "model.", "model."),
        *ROPE_BUFFERS,
    ],
    tiny=[
        TINY,
        TINY | {
            "block_types": ["attention", "recurrent"], "num_hidden_layers": 5, "attention_bias": True, "lru_width": 66,
            "conv1d_width": 3, "hidden_activation": "silu", "rms_norm_eps": 1e-3, "logits_soft_cap": 7.0,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0},
        },
    ],
)  # fmt: skip
