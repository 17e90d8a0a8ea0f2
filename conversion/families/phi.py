"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): GPT-J's block with a rotation by halves and biases everywhere."""

from ..engine.family import COMMON_FIELDS, Family, Keys, Theirs, restore_rope, rope
from ..engine.rules import renames
from .shared_common import ROPE_BUFFERS, tiny
from .shared_gpt import BIASED

QK_NORM = {"qk_norm": "layer_norm", "qk_norm_config.bias": True}


def derive(theirs: Theirs) -> Keys:
    return {"rope_parameters": rope(theirs, partial=True)} | (QK_NORM if theirs.qk_layernorm else {})


FAMILY = Family(
    fields=COMMON_FIELDS
    | {"layer_norm_eps": "norm_eps", "resid_pdrop": "residual_dropout", "embd_pdrop": "embedding_dropout"},
    fixed=BIASED | {"lm_head_bias": True, "block_type": "parallel", "precision.parallel_sum_order": "branches_first"},
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours), "qk_layernorm": ours.qk_norm is not None},
    rules=[
        *renames({"final_layernorm": "norm"}, "model.", "model."),
        *renames(
            {
                "input_layernorm": "attn_norm", "self_attn.dense": "self_attn.o_proj", "mlp.fc1": "mlp.up_proj",
                "mlp.fc2": "mlp.down_proj", "self_attn.q_layernorm": "self_attn.q_norm",
                "self_attn.k_layernorm": "self_attn.k_norm",
            }
        ),
        *ROPE_BUFFERS,
    ],
    tiny=[
        tiny(head_dim=..., num_key_value_heads=...),
        tiny(qk_layernorm=True, partial_rotary_factor=0.25, head_dim=..., hidden_act="gelu"),
        tiny(head_dim=16, partial_rotary_factor=0.75),
        tiny(tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 2.0}, layer_norm_eps=1e-3),
    ],
)  # fmt: skip
