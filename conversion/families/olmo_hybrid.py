"""OLMo Hybrid (OLMo team 2026): three layers of gated delta rule, each behind a norm, to one of OLMo 3's attention,
whose norm stands behind it; no rotation in the released models.

The strength of a write reaches 2, so that the state can flip a direction.
"""

from collections.abc import Callable, Sequence

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Join, Rule
from .shared_common import LLAMA_FIELDS, ROPE_BUFFERS, tiny
from .shared_linear import (
    KEYS,
    LAYER,
    MIXER,
    TINY_DELTA,
    VALUES,
    delta,
    is_attention,
    is_recurrent,
    recurrent_rule,
    restore_delta,
)

BLOCKS = {"linear_attention": "pre_norm", "full_attention": "output_norm"}
# The norm on a delta rule's output has an epsilon of its own, whatever the config says.
OUTPUT_EPS = 1e-5


def derive(theirs: Theirs) -> Keys:
    rotation = rope(theirs)
    rotates = rotation.get("rope_theta") is not None
    return delta(theirs) | {
        "linear_attn_config.norm_eps": OUTPUT_EPS,
        "linear_attn_config.allow_neg_eigval": theirs.linear_allow_neg_eigval,
        "block_type": [BLOCKS[layer_type] for layer_type in theirs.layer_types],
        "position_embedding_type": "rope" if rotates else "none",
        "rope_parameters": rotation if rotates else None,
        "precision.rope": "float32_trig" if rotates else None,
    }


def restore(ours: Ours) -> Keys:
    rotation = restore_rope(ours) or {"rope_type": "default", "rope_theta": None}
    return restore_delta(ours) | {
        "rope_parameters": rotation, "linear_allow_neg_eigval": bool(ours.linear_attn_config["allow_neg_eigval"]),
    }  # fmt: skip


def norms(where: Callable, **names: Sequence[str]) -> list[Rule]:
    """Rules for the norms of one kind of layer: ours -> what they are called there, the stored name first."""
    return [Rule(f"{LAYER}{one}.weight", f"{LAYER}{ours}.weight", where=where) for ours in names for one in names[ours]]


TINY = tiny(**TINY_DELTA | {"head_dim": ..., "pad_token_id": 0})

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"precision.norm": "scale_then_cast", "qk_norm": "rms_norm", "qk_norm_config.scope": "full"},
    derive=derive, restore=restore,
    rules=[
        *norms(is_recurrent, attn_norm=("attention_layer_norm", "input_layernorm"),
               mlp_norm=("feedforward_layer_norm", "post_attention_layernorm")),
        *norms(is_attention, attn_output_norm=("post_attention_layernorm", "feedforward_layer_norm"),
               mlp_output_norm=("post_feedforward_layernorm",)),
        recurrent_rule(
            [f"{MIXER}{x}_conv1d.weight" for x in "qkv"], f"{MIXER}conv1d.weight", Join(KEYS, KEYS, VALUES)
        ),
        *ROPE_BUFFERS,
    ],
    tiny=[
        TINY | {"rope_theta": None},
        TINY | {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"], "num_hidden_layers": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "linear_allow_neg_eigval": False,
            "linear_conv_kernel_dim": 3, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
            "hidden_act": "gelu",
        },
    ],
)  # fmt: skip
