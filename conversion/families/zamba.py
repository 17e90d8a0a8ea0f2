"""Zamba 7B (Glorioso et al. 2024, arXiv 2405.16712): Mamba layers whose heads scan apart; in front of some stands one
transformer block that all of them share, which reads the embeddings beside the residual stream."""

from collections.abc import Callable

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Deinterleave, Reshape, Rule
from ..errors import ConversionError
from .shared_blocks import DECODER, PLAIN, SHARED, block_rules, is_plain, is_shared, layer_rules, shared_fields
from .shared_common import tiny
from .shared_state_space import LAYER, MIXER, expansion, with_fields

SCAN = {
    "n_mamba_heads": "linear_num_value_heads", "mamba_d_state": "linear_key_head_dim",
    "mamba_d_conv": "linear_conv_kernel_dim", "mamba_dt_rank": "linear_attn_config.time_step_rank",
    "hidden_mamba_act": "linear_attn_config.act",
    "mamba_conv_bias": "linear_attn_config.conv_bias", "mamba_proj_bias": "linear_attn_config.bias",
    "time_step_min": "linear_attn_config.time_step_min",
    "time_step_max": "linear_attn_config.time_step_max", "time_step_floor": "linear_attn_config.time_step_floor",
}  # fmt: skip
HEADS, WIDTH, STATES, RANK = (
    "linear_num_value_heads", "linear_value_head_dim", "linear_key_head_dim", "linear_attn_config.time_step_rank",
)  # fmt: skip
# Their parameters of all heads -> ours: channels in one row, or a matrix per head where there are several.
CHANNELS = {
    "A_log": ((HEADS, WIDTH, STATES), (f"{HEADS}*{WIDTH}", STATES)),
    "D": ((HEADS, WIDTH), (f"{HEADS}*{WIDTH}",)),
}
PER_HEAD = {"x_proj_weight": (f"{RANK}+2*{STATES}", WIDTH), "dt_proj_weight": (WIDTH, RANK), "dt_proj_bias": (WIDTH,)}


def derive(theirs: Theirs) -> Keys:
    width = theirs.attention_hidden_size
    if width != 2 * theirs.hidden_size:
        raise ConversionError(f"zamba: attention_hidden_size={width} must be twice hidden_size={theirs.hidden_size}.")
    width = theirs.mamba_expand * theirs.hidden_size // theirs.n_mamba_heads
    fields = shared_fields(theirs, 1) | {"linear_num_key_heads": theirs.n_mamba_heads, "linear_value_head_dim": width}
    head_dim = theirs.attention_head_dim
    return fields | {"head_dim": head_dim, "attention_multiplier": (head_dim / 2) ** -0.5}


def restore(ours: Ours) -> Keys:
    keys = {"layers_block_type": list(ours.layer_types), "attention_head_dim": ours.head_dim}
    return keys | {"mamba_expand": expansion(ours), "attention_hidden_size": 2 * ours.hidden_size}


def scan_rules(config: Ours, theirs: str, where: Callable) -> list[Rule]:
    one = config.linear_num_key_heads == 1
    sizes = CHANNELS | {name: ((HEADS, *size), size if one else (HEADS, *size)) for name, size in PER_HEAD.items()}
    return [
        Rule(theirs + "in_proj.{w}", MIXER + "in_proj.{w}", Deinterleave(), where=where),
        *(
            Rule(theirs + name, MIXER + name.replace("proj_", "proj."), Reshape(*shapes), where=where)
            for name, shapes in sizes.items()
        ),
    ]


def rules(config: Ours) -> list[Rule]:
    scans = [*scan_rules(config, LAYER + "mamba.", is_plain), *scan_rules(config, DECODER + "mamba.", is_shared)]
    return [*block_rules(config, "shared_transf"), *scans, *layer_rules()]


TINY = tiny(
    head_dim=..., num_key_value_heads=6, n_mamba_heads=2, mamba_d_state=10, mamba_dt_rank=7, mamba_expand=1,
    num_hidden_layers=2, layers_block_type=[SHARED, SHARED],
)  # fmt: skip
FAMILY = Family(
    fields=with_fields({"rms_norm_eps": "norm_eps"} | SCAN, ["head_dim"]),
    fixed={"linear_attention_type": "mamba", "position_embedding_type": "none"},
    derive=derive, restore=restore, rules=rules,
    tiny=[
        TINY,
        TINY
        | {"layers_block_type": [SHARED, PLAIN, SHARED], "num_hidden_layers": 3, "num_key_value_heads": 2,
           "mamba_expand": 2, "n_mamba_heads": 1, "mamba_d_conv": 3, "mamba_conv_bias": False, "mamba_proj_bias": True,
           "hidden_act": "silu", "rms_norm_eps": 1e-3, "attention_head_dim": 20},
        TINY | {"tie_word_embeddings": False},
    ],
)  # fmt: skip
