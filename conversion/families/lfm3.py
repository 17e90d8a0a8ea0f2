"""LFM3 (Liquid AI 2026): LFM2 with norms on outputs, too, a gate per head, and layers with a window; each type of layer
that attends has a rotation of its own."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .lfm2 import FIELDS, LAYERS, convolutions, restore_convolutions
from .shared_common import tiny

NAMES = {name: name for name in ("intermediate_size", "attention_bias", "attention_dropout")}
NORMS = {"post_operator_norm": "attn_output_norm", "post_ffn_norm": "mlp_output_norm"}
GATES = {f"self_attn.{name}": "self_attn.output_gate.g_proj" for name in ("gate_proj", "g_proj")}
MIXED = ["conv", "conv", "full_attention", "sliding_attention", "full_attention"]


def attending(config: Theirs | Ours) -> list[str]:
    """The types of the layers that attend."""
    return [name for name in dict.fromkeys(config.layer_types) if name != "conv"]


def derive(theirs: Theirs) -> Keys:
    fields = convolutions(theirs) | {
        "block_type": "sandwich_norm" if theirs.use_sandwich_norm else "pre_norm",
        "sliding_window": theirs.sliding_window if "sliding_attention" in theirs.layer_types else None,
    }
    attends = attending(theirs)
    fields["rope_parameters"] = {name: fields["rope_parameters"][name] for name in attends}
    return fields | ({"attn_output_gate": "headwise"} if theirs.use_attention_gate and attends else {})


def restore(ours: Ours) -> Keys:
    keys = restore_convolutions(ours) | {"use_sandwich_norm": "sandwich_norm" in ours.block_types}
    window = {"sliding_window": ours.sliding_window or ours.max_position_embeddings}
    if "rope_type" in keys["rope_parameters"]:
        keys["rope_parameters"] = dict.fromkeys(attending(ours), keys["rope_parameters"])
    return keys | window | {"use_attention_gate": ours.attn_output_gate is not None}


FAMILY = Family(
    fields=FIELDS | NAMES,
    fixed={"qk_norm": "rms_norm", "precision.rope": "float32_trig"},
    derive=derive,
    restore=restore,
    rules=[*renames(GATES | NORMS), *LAYERS],
    tiny=[
        tiny(num_hidden_layers=5, layer_types=MIXED, sliding_window=5, pad_token_id=0),
        tiny(
            num_hidden_layers=5, layer_types=MIXED[::-1], sliding_window=4, pad_token_id=0, conv_bias=True,
            conv_L_cache=3, use_sandwich_norm=False, use_attention_gate=False, attention_bias=True,
            tie_word_embeddings=False,
        ),
    ],
)  # fmt: skip
