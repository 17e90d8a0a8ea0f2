"""What many family files share: the Llama skeleton's fields and rules, experts stored one by one, sliding windows."""

from collections.abc import Callable
from typing import Any

from ..engine.family import COMMON_FIELDS, Keys, Ours, Theirs
from ..engine.prediction import BEHIND, KeepPrediction
from ..engine.rules import Context, Drop, Rule, StackExperts, renames

LLAMA_FIELDS = COMMON_FIELDS | {"rms_norm_eps": "norm_eps"}

# Small, odd and mutually different, so that no two dimensions can be mistaken for each other.
TINY_SIZES = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
}  # fmt: skip


def tiny(**changes: Any) -> dict[str, Any]:
    """A small variant for the tests: `tiny(attention_bias=True)`; a value of `...` takes a size away."""
    return {name: value for name, value in (TINY_SIZES | changes).items() if value is not ...}


# Buffers that files of older libraries carry.
ROPE_BUFFERS = [
    Drop("model.layers.{i}.self_attn.rotary_emb.{inv_freq|cos_cached|sin_cached}"),
    Drop("model.rotary_emb.inv_freq"),
]

# Norms whose names mean something else in other families (Gemma, OLMo 2); everything else is spelt as zoo spells it.
LLAMA_RULES = [
    *renames({"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}),
    *ROPE_BUFFERS,
]


def expert_rules(
    theirs: str = "model.layers.{i}.mlp.experts.{e}.",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    where: Callable[[Context], bool] | None = None,
) -> list[Rule]:
    """Experts stored one by one, three matrices each, to zoo's `[E, 2I, D]` and `[E, D, I]`."""
    ours = "model.layers.{i}.mlp.experts."
    return [
        Rule([f"{theirs}{gate}.weight", f"{theirs}{up}.weight"], ours + "gate_up_proj", StackExperts(), where=where),
        Rule(f"{theirs}{down}.weight", ours + "down_proj", StackExperts(), where=where),
    ]


# Layers after the last one, which predict further tokens.
PREDICTION_LAYERS = [
    KeepPrediction("model.layers.{i}.{*}", BEHIND, where=lambda ctx: ctx.layer >= ctx.config.num_hidden_layers)
]


def window_fields(theirs: Theirs) -> Keys:
    """`layer_types`, and the window only where a layer slides: a number without effect is not copied."""
    slides = "sliding_attention" in theirs.layer_types
    return {"layer_types": list(theirs.layer_types), "sliding_window": theirs.sliding_window if slides else None}


def restore_window_fields(ours: Ours) -> Keys:
    """The inverse of `window_fields`."""
    return {"layer_types": list(ours.layer_types), "sliding_window": ours.sliding_window}


def restore_window(ours: Ours) -> Keys:
    """`restore_window_fields` for a class that builds a window's mask even where no layer slides: it needs a number."""
    return restore_window_fields(ours) | {"sliding_window": ours.sliding_window or ours.max_position_embeddings}
