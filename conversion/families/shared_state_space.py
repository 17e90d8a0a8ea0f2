"""What families with state space layers share: fields of Mamba and Mamba-2 mixers, names of their tensors, layer
patterns, small sizes for the tests."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.family import COMMON_FIELDS
from ..engine.ops import Context
from ..engine.rules import Rule, renames

LAYER = "model.layers.{i}."
MIXER = LAYER + "linear_attn."
RECURRENT = "linear_attention"

# Fields of models without attention and MLPs.
PURE_FIELDS = {
    name: name
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "initializer_range", "tie_word_embeddings", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
    )
} | {"layer_norm_epsilon": "norm_eps", "residual_in_fp32": "precision.residual_in_fp32"}  # fmt: skip
PURE_FIXED = {"block_type": "mixer_only", "position_embedding_type": "none"}

# Their names of a Mamba-2 mixer's fields -> ours, in the files that share the spelling.
SSD_FIELDS = {
    "mamba_n_heads": "linear_num_value_heads", "mamba_d_head": "linear_value_head_dim",
    "mamba_n_groups": "linear_num_key_heads", "mamba_d_state": "linear_key_head_dim",
    "mamba_d_conv": "linear_conv_kernel_dim", "mamba_conv_bias": "linear_attn_config.conv_bias",
    "mamba_proj_bias": "linear_attn_config.bias",
}  # fmt: skip
PURE_SCAN_FIELDS = {
    "state_size": "linear_key_head_dim", "time_step_rank": "linear_attn_config.time_step_rank",
    "conv_kernel": "linear_conv_kernel_dim",
    "use_conv_bias": "linear_attn_config.conv_bias", "use_bias": "linear_attn_config.bias",
    "hidden_act": "linear_attn_config.act",
    "time_step_min": "linear_attn_config.time_step_min", "time_step_max": "linear_attn_config.time_step_max",
    "time_step_floor": "linear_attn_config.time_step_floor",
}  # fmt: skip

# Different from each other, from every other size and from their products.
TINY_SSD = {
    "mamba_n_heads": 8, "mamba_d_head": 12, "mamba_n_groups": 2, "mamba_d_state": 10,
    "head_dim": ..., "num_hidden_layers": 4,
}  # fmt: skip


def pure(names: dict[str, str]) -> dict[str, str]:
    """`PURE_FIELDS` and those of a mixer."""
    return PURE_FIELDS | names


def is_recurrent(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer whose mixer is a recurrence."""
    return ctx.layer_entry() == RECURRENT


def has_mixer(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer that is a mixer alone."""
    return ctx.layer_entry("block_types") == "mixer_only"


def has_mlp(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer that is an MLP alone."""
    return ctx.layer_entry("block_types") == "mlp_only"


def mixer_rules(
    theirs: str, ours: str = MIXER, names: dict[str, str] | None = None, where: Callable = is_recurrent
) -> list[Rule]:
    """The tensors of a state space mixer, which is called otherwise there; `names` are further modules."""
    modules = {"out_proj": "o_proj", "norm": "o_norm"} | (names or {})
    rules = [Rule(f"{theirs}{a}.{{w}}", f"{ours}{b}.{{w}}", where=where) for a, b in modules.items()]
    return [*rules, Rule(theirs + "{*}", ours + "{*}", where=where)]


# A model of mixers alone: `backbone.layers.N.{norm,mixer}`; the original files say `embedding`.
PURE_NAMES = [
    Rule("model.embeddings.weight", "model.embed_tokens.weight"),
    Rule("model.embedding.weight", "model.embed_tokens.weight"),
    Rule("model.norm_f.{w}", "model.norm.{w}"),
]
PURE_RULES = [
    *PURE_NAMES,
    Rule(LAYER + "norm.{w}", LAYER + "attn_norm.{w}", where=is_recurrent),
    *mixer_rules(LAYER + "mixer."),
]
# Layers that are one thing: `backbone.layers.N.{norm,mixer}` whatever the mixer is.
SINGLE_NORMS = [
    Rule(LAYER + "norm.{w}", LAYER + "attn_norm.{w}", where=has_mixer),
    Rule(LAYER + "norm.{w}", LAYER + "mlp_norm.{w}", where=has_mlp),
]
SINGLE_PARTS = [
    Rule(LAYER + "mixer.{*}", LAYER + "self_attn.{*}", where=has_mixer),
    Rule(LAYER + "mixer.{*}", LAYER + "mlp.{*}", where=has_mlp),
]
PURE_PREFIXES = {"backbone.": "model."}
# A Llama skeleton with the names of Jamba.
HYBRID_RULES = [
    *renames({"input_layernorm": "attn_norm", "pre_ff_layernorm": "mlp_norm"}),
    Rule(LAYER + "feed_forward.{*}", LAYER + "mlp.{*}"),
    Rule("model.final_layernorm.{w}", "model.norm.{w}"),
]


def step_limit(limit: Sequence[float] | None) -> list[float | None] | None:
    """`time_step_limit` with None for what bounds nothing."""
    low, high = limit or (0.0, math.inf)
    bounds = [low if low > 0 else None, high if math.isfinite(high) else None]
    return None if bounds == [None, None] else bounds


def restore_step_limit(ours: Any) -> list[float]:
    """The inverse of `step_limit`."""
    low, high = ours.linear_attn_config["time_step_limit"] or (None, None)
    return [low or 0.0, math.inf if high is None else high]


def inner_width(ours: Any) -> int:
    """Channels of a state space mixer."""
    return ours.linear_num_value_heads * ours.linear_value_head_dim


def expansion(ours: Any) -> int:
    """Channels of a state space mixer for one of the residual stream; rounded down, which the check of an export
    sees."""
    return inner_width(ours) // ours.hidden_size


def duality(theirs: Any, fields: dict[str, str] = SSD_FIELDS) -> dict[str, Any]:
    """Mamba-2 mixers in the layers that are recurrent, if there are any."""
    layer_types = list(theirs.layer_types)
    if not set(layer_types) - {"full_attention", "moe", "mlp"}:
        return {"layer_types": layer_types}
    sizes = {ours: getattr(theirs, name) for name, ours in fields.items()}
    limit = step_limit(getattr(theirs, "time_step_limit", None))
    return {
        "layer_types": layer_types,
        "linear_attention_type": "mamba2",
        "linear_attn_config.time_step_limit": limit,
    } | sizes


def restore_duality(ours: Any, fields: dict[str, str] = SSD_FIELDS) -> dict[str, Any]:
    """The inverse of `duality`, with the expansion that follows from the sizes."""
    if ours.linear_attention_type is None:
        return {}
    keys = {name: getattr(ours, field) for name, field in fields.items()}
    return keys | {"mamba_expand": expansion(ours), "time_step_limit": restore_step_limit(ours)}


# transformers' type of a layer that is one thing -> zoo's topology, layer type and MLP.
SINGLE_BLOCKS = {
    "linear_attention": ("mixer_only", "linear_attention", "dense"),
    "full_attention": ("mixer_only", "full_attention", "dense"),
    "mlp": ("mlp_only", "moe", "dense"),
    "moe": ("mlp_only", "moe", "sparse"),
}
_COLUMNS = ("block_type", "layer_types", "mlp_layer_types")


def single_blocks(names: Sequence[str]) -> dict[str, list[str]]:
    """The three fields that say what each layer is, for layers that are a mixer, an MLP or experts alone."""
    layers = [SINGLE_BLOCKS[name] for name in names]
    return {field: [layer[column] for layer in layers] for column, field in enumerate(_COLUMNS)}


def restore_single_blocks(ours: Any) -> list[str]:
    """The inverse of `single_blocks`; "mlp" for a layer that is more, which the check of an export sees."""
    known = {layer: layer_type for layer_type, layer in SINGLE_BLOCKS.items()}
    layers = zip(ours.block_types, ours.layer_types, ours.mlp_layer_types, strict=True)
    return [known.get(layer, "mlp") for layer in layers]


def periodic(theirs: Any, what: str, count: int) -> list[bool]:
    """Which layers `{what}_layer_period` and `{what}_layer_offset` select."""
    period, offset = getattr(theirs, f"{what}_layer_period"), getattr(theirs, f"{what}_layer_offset")
    return [index % period == offset for index in range(count)]


def restore_periodic(selected: list[bool], what: str) -> dict[str, int]:
    """The smallest period that selects these layers; where none does, one that selects no layer."""
    count = len(selected)
    for period in range(1, count + 1):
        for offset in range(period):
            if selected == [index % period == offset for index in range(count)]:
                return {f"{what}_layer_period": period, f"{what}_layer_offset": offset}
    return {f"{what}_layer_period": count + 1, f"{what}_layer_offset": count}


def with_fields(changes: dict[str, str], without: Sequence[str] = ()) -> dict[str, str]:
    """The common fields and further ones, less some."""
    return {name: ours for name, ours in (COMMON_FIELDS | changes).items() if name not in without}
