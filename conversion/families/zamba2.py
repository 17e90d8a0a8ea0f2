"""Zamba2 (Glorioso et al. 2024, arXiv 2411.15242): Mamba-2 layers; in front of some stands one of a few transformer
blocks that they share, which reads the embeddings beside the residual stream and has small adapters for each use."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule
from .shared_blocks import PLAIN, SHARED, adapter_rules, block_rules, layer_rules, shared_fields
from .shared_common import tiny
from .shared_state_space import expansion, with_fields

SSD = {
    "n_mamba_heads": "linear_num_value_heads", "mamba_ngroups": "linear_num_key_heads",
    "mamba_d_state": "linear_key_head_dim", "mamba_d_conv": "linear_conv_kernel_dim",
    "add_bias_linear": "linear_attn_config.bias",
    "time_step_min": "linear_attn_config.time_step_min", "time_step_max": "linear_attn_config.time_step_max",
    "time_step_floor": "linear_attn_config.time_step_floor",
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    inner = theirs.mamba_expand * theirs.hidden_size
    fields = shared_fields(theirs, theirs.num_mem_blocks) | {"linear_value_head_dim": inner // theirs.n_mamba_heads}
    fields |= {"linear_attn_config.time_step_limit": [theirs.time_step_min, None], "mlp_bias": theirs.add_bias_linear}
    fields |= {"rope_parameters": rope(theirs)} if theirs.use_mem_rope else {"position_embedding_type": "none"}
    if SHARED in fields["layer_types"]:
        attention = theirs.adapter_rank if theirs.use_shared_attention_adapter else None
        fields |= {"shared_attention_adapter_rank": attention, "shared_mlp_adapter_rank": theirs.adapter_rank}
    return fields


def restore(ours: Ours) -> Keys:
    rotates = ours.position_embedding_type == "rope"
    keys = {"layers_block_type": list(ours.layer_types), "use_mem_rope": rotates, "mamba_expand": expansion(ours)}
    keys |= {"rope_parameters": restore_rope(ours)} if rotates else {}
    if ours.num_mem_blocks is not None:
        adapts = ours.shared_attention_adapter_rank is not None
        keys |= {"num_mem_blocks": ours.num_mem_blocks, "use_shared_attention_adapter": adapts}
        keys |= {"adapter_rank": ours.shared_mlp_adapter_rank}
    return keys


def rules(config: Ours, block: str = "shared_transformer") -> list[Rule]:
    return [*adapter_rules(config, block), *block_rules(config, block, fused=True), *layer_rules()]


# Few layers: with random weights each use of a block multiplies rounding errors by about ten.
TINY = tiny(
    head_dim=..., num_key_value_heads=..., mamba_expand=1, n_mamba_heads=4, mamba_ngroups=1, mamba_d_state=10,
    num_mem_blocks=1, adapter_rank=5, layers_block_type=[SHARED, SHARED], num_hidden_layers=2,
)  # fmt: skip
FAMILY = Family(
    fields=with_fields({"rms_norm_eps": "norm_eps"} | SSD, ["head_dim"]),
    # Its classes fix the norm inside a mixer, and the convolution's bias and activation.
    fixed={
        "linear_attention_type": "mamba2", "linear_attn_config.norm_eps": 1e-5, "linear_attn_config.conv_bias": True,
        "linear_attn_config.act": "silu",
    },
    derive=derive,
    restore=restore,
    rules=rules,
    tiny=[
        TINY | {"use_shared_attention_adapter": True},
        TINY
        | {"num_mem_blocks": 2, "hidden_act": "sigmoid",
           "use_shared_attention_adapter": True, "use_mem_rope": True, "time_step_min": 1e-6},
        TINY
        | {"layers_block_type": [PLAIN, PLAIN, SHARED], "num_hidden_layers": 3, "num_key_value_heads": 2,
           "hidden_act": "silu", "mamba_expand": 2, "n_mamba_heads": 8, "mamba_ngroups": 2, "mamba_d_conv": 3,
           "rms_norm_eps": 1e-3, "add_bias_linear": True},
        TINY | {"use_shared_attention_adapter": True, "tie_word_embeddings": False},
    ],
)  # fmt: skip
