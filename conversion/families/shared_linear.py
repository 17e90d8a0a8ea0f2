"""What families with recurrent layers share: fields and tensors of the gated delta rule, small sizes for the tests."""

import torch
from torch import Tensor

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from ..engine.ops import Context
from ..engine.rules import Op, Rule

LAYER = "model.layers.{i}."
ATTENTION, MIXER = LAYER + "self_attn.", LAYER + "linear_attn."

DELTA_FIELDS = (
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim",
)  # fmt: skip
# Sizes of what a delta rule reads: all keys, all values, the values of one key head.
KEYS = "linear_num_key_heads*linear_key_head_dim"
VALUES = "linear_num_value_heads*linear_value_head_dim"
GROUP = "linear_num_value_heads*linear_value_head_dim/linear_num_key_heads"

# Different from each other, from every other size and from what four heads of them make.
TINY_DELTA = {
    "head_dim": 16, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 10, "linear_value_head_dim": 14,
}  # fmt: skip


def is_recurrent(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer without softmax attention."""
    return ctx.layer_entry() in ("linear_attention", "conv")


def is_attention(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer with softmax attention."""
    return not is_recurrent(ctx)


def recurrent_rule(theirs: str | list[str], ours: str | list[str], *ops: Op) -> Rule:
    """A rule for the recurrent layers alone."""
    return Rule(theirs, ours, *ops, where=is_recurrent)


def delta(theirs: Theirs) -> Keys:
    """`layer_types` and the gated delta rule of the linear layers, if there are any."""
    fields = {"layer_types": list(theirs.layer_types)}
    if "linear_attention" not in theirs.layer_types:
        return fields
    sizes = {name: getattr(theirs, name) for name in DELTA_FIELDS}
    return fields | sizes | {"linear_attention_type": "gated_delta_net", "linear_attn_config.act": theirs.hidden_act}


def restore_delta(ours: Ours) -> Keys:
    """The inverse of `delta`."""
    sizes = {name: getattr(ours, name) for name in DELTA_FIELDS}
    return {"layer_types": list(ours.layer_types)} | {name: value for name, value in sizes.items() if value is not None}


def kimi_delta(theirs: Theirs) -> Keys:
    """The types of the layers and the delta rule of the linear ones, if there are any."""
    fields = {"layer_types": list(theirs.layer_types), "mlp_layer_types": list(theirs.mlp_layer_types)}
    if "linear_attention" not in theirs.layer_types:
        return fields
    heads, width = theirs.linear_num_heads, theirs.linear_head_dim
    return fields | {
        "linear_attention_type": "kimi_delta_attention", "linear_num_key_heads": heads, "linear_num_value_heads": heads,
        "linear_key_head_dim": width, "linear_value_head_dim": width,
        "linear_conv_kernel_dim": theirs.linear_conv_kernel_dim, "linear_attn_config.act": theirs.hidden_act,
    }  # fmt: skip


def restore_kimi_delta(ours: Ours) -> Keys:
    """The inverse of `kimi_delta`."""
    fields = {"layer_types": list(ours.layer_types), "mlp_layer_types": list(ours.mlp_layer_types)}
    if ours.linear_attention_type is None:
        return fields
    return fields | {
        "linear_num_heads": ours.linear_num_value_heads, "linear_head_dim": ours.linear_key_head_dim,
        "linear_conv_kernel_dim": ours.linear_conv_kernel_dim,
    }  # fmt: skip


# Sections of the channels that turn by height and by width of a picture: for text all three positions are one.
PICTURE_ROTATION = ("mrope_section", "mrope_interleaved")


def text_rope(theirs: Theirs) -> Keys:
    """The rotation of a token in a text."""
    parameters = rope(theirs, partial=True)
    return {"rope_parameters": {name: value for name, value in parameters.items() if name not in PICTURE_ROTATION}}


def gated_hybrid(theirs: Theirs) -> Keys:
    """What Qwen3-Next and Qwen3.5 do not share with other Qwen models."""
    return delta(theirs) | text_rope(theirs)


def restore_gated_hybrid(ours: Ours) -> Keys:
    """The inverse of `gated_hybrid`."""
    return restore_delta(ours) | {"rope_parameters": restore_rope(ours)}


# Norms whose weights are offsets from one, and attention whose output is gated by what q_proj gives beside the query.
GATED_HYBRID = {"norm_unit_offset": True, "qk_norm": "rms_norm", "attn_output_gate": "query"}
DELTA_RULES = [
    recurrent_rule(f"{LAYER}linear_attn.norm.weight", f"{MIXER}o_norm.weight"),
    recurrent_rule(f"{LAYER}linear_attn.out_proj.weight", f"{MIXER}o_proj.weight"),
]

# Tables that files of lightning attention hold beside its weights.
DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def decays(heads: int, layer: int, layers: int, size: int) -> dict[str, Tensor]:
    """What a layer keeps of its rates s_h, for places i, j of a block: s, e^(-s i), e^(-s (B - i)), e^(-s (i - j))."""
    rate = (1 / 2 ** (8 / heads)) ** (torch.arange(heads) + 1)
    rate = (rate * (1 - layer / (layers - 1 + 1e-5) + 1e-5))[:, None, None]
    place = (torch.arange(size) + 1)[:, None]
    distance = rate * (place - place.t())[None, None]
    table = torch.exp(torch.where(distance >= 0, -distance, float("-inf")))
    return dict(zip(DECAYS, (rate, torch.exp(-rate * place), torch.exp(-rate * (size - place)), table), strict=True))
