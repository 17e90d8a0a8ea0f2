"""LFM2 (Liquid AI 2025): gated short convolutions, and attention with normed queries and keys in some of the layers.

The stored width of the MLP may be the one of a plain MLP, from which the real one is reckoned (as in Llama's own code).
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import renames
from .shared_common import ROPE_BUFFERS, tiny
from .shared_linear import LAYER, MIXER, recurrent_rule

SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "initializer_range", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "dtype", "norm_eps",
)  # fmt: skip
FIELDS = {name: name for name in SHAPE}


def inner_width(theirs: Theirs) -> int:
    """The width of the MLP, adjusted where the config asks for it."""
    width = theirs.intermediate_size
    if theirs.block_auto_adjust_ff_dim:
        width = int(2 * width / 3)
        if theirs.block_ffn_dim_multiplier is not None:
            multiple = theirs.block_multiple_of
            width = -(-int(theirs.block_ffn_dim_multiplier * width) // multiple) * multiple
    return width


def convolutions(theirs: Theirs) -> Keys:
    """`layer_types`, the rotation and the short convolutions, if there are any."""
    fields = {"layer_types": list(theirs.layer_types), "rope_parameters": rope(theirs)}
    if "conv" not in theirs.layer_types:
        return fields
    bias, taps = theirs.conv_bias, theirs.conv_L_cache
    return fields | {
        "linear_attention_type": "short_conv", "linear_conv_kernel_dim": taps, "linear_attn_config.conv_bias": bias,
        "linear_attn_config.bias": bias,
    }  # fmt: skip


def restore_convolutions(ours: Ours) -> Keys:
    """The inverse of `convolutions`."""
    fields = {"layer_types": list(ours.layer_types), "rope_parameters": restore_rope(ours)}
    if ours.linear_attention_type is None:
        return fields
    return fields | {"conv_L_cache": ours.linear_conv_kernel_dim, "conv_bias": ours.linear_attn_config["conv_bias"]}


GATED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
ATTENTION = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
LAYERS = [
    recurrent_rule(f"{LAYER}conv.conv.{{w}}", f"{MIXER}conv1d.{{w}}"),
    recurrent_rule(f"{LAYER}conv.in_proj.{{w}}", f"{MIXER}in_proj.{{w}}"),
    recurrent_rule(f"{LAYER}conv.out_proj.{{w}}", f"{MIXER}o_proj.{{w}}"),
    *renames({"operator_norm": "attn_norm", "ffn_norm": "mlp_norm"}),
    *renames({f"feed_forward.{theirs}": f"mlp.{ours}" for theirs, ours in GATED.items()}),
    *renames({"embedding_norm": "norm"}, "model.", "model."),
    *ROPE_BUFFERS,
]
RULES = [*renames(ATTENTION, f"{LAYER}self_attn.", f"{LAYER}self_attn."), *LAYERS]
TINY = tiny(head_dim=..., num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "conv"])

FAMILY = Family(
    fields=FIELDS,
    fixed={"qk_norm": "rms_norm"},
    derive=lambda theirs: convolutions(theirs) | {"intermediate_size": inner_width(theirs)},
    restore=lambda ours: restore_convolutions(ours)
    | {"intermediate_size": ours.intermediate_size, "block_auto_adjust_ff_dim": False},
    rules=RULES,
    tiny=[
        TINY | {"block_multiple_of": 11},
        TINY | {
            "layer_types": ["full_attention", "conv"], "num_hidden_layers": 2, "conv_bias": True, "conv_L_cache": 5,
            "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False, "norm_eps": 1e-3,
        },
        TINY | {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    ],
)  # fmt: skip
