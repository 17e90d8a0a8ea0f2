"""Persimmon (Adept 2023): layer norms, norms on queries and keys, squared ReLU, a rotation of half of each head."""

from ..engine.family import COMMON_FIELDS, Family, Keys, Theirs, restore_rope, rope
from ..engine.rules import renames
from .phi import QK_NORM
from .shared_common import ROPE_BUFFERS
from .shared_gpt import BIASED, TINY_PLAIN, grouped_qkv

ABSENT = ("num_key_value_heads", "head_dim")
TINY = TINY_PLAIN | {"intermediate_size": 80, "max_position_embeddings": 64}


def derive(theirs: Theirs) -> Keys:
    return {"rope_parameters": rope(theirs, partial=True)} | (QK_NORM if theirs.qk_layernorm else {})


FAMILY = Family(
    fields={name: ours for name, ours in COMMON_FIELDS.items() if name not in ABSENT}
    | {"layer_norm_eps": "norm_eps", "hidden_dropout": "residual_dropout"},
    fixed=BIASED,
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours), "qk_layernorm": ours.qk_norm is not None},
    rules=[
        *renames({"final_layernorm": "norm"}, "model.", "model."),
        *renames(
            {
                "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm",
                "self_attn.dense": "self_attn.o_proj", "self_attn.q_layernorm": "self_attn.q_norm",
                "self_attn.k_layernorm": "self_attn.k_norm", "mlp.dense_h_to_4h": "mlp.up_proj",
                "mlp.dense_4h_to_h": "mlp.down_proj",
            }
        ),
        grouped_qkv("model.layers.{i}.self_attn.query_key_value"),
        *ROPE_BUFFERS,
    ],
    tiny=[
        TINY,
        TINY | {"qk_layernorm": False, "tie_word_embeddings": True, "partial_rotary_factor": 0.25},
        TINY | {"layer_norm_eps": 1e-3, "hidden_act": "gelu", "rope_theta": 500.0},
    ],
)  # fmt: skip
