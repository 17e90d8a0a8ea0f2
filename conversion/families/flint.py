"""Flint (Recursive SI 2026): Qwen3's experts behind a sigmoid router, beside one that every token visits; sinks; layers
with a window rotate, the others do not."""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, renames
from .qwen2_moe import SHARED
from .qwen3_moe import FAMILY as QWEN3
from .shared_common import restore_window, window_fields
from .shared_experts import normed, restore_stepped, stepped, tiny_experts

SINKS = "model.layers.{i}.self_attn."


def derive(theirs: Theirs) -> Keys:
    rotates = [int(layer_type == "sliding_attention") for layer_type in theirs.layer_types]
    fields = {"rope_parameters": rope(theirs), "no_rope_layers": None if all(rotates) else rotates}
    return fields | window_fields(theirs) | stepped(theirs) | normed(theirs)


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours)} | restore_window(ours) | restore_stepped(ours)


FAMILY = replace(
    QWEN3,
    fields=QWEN3.fields | {"shared_expert_intermediate_size": "shared_expert_intermediate_size"},
    fixed={
        "qk_norm": "rms_norm", "attention_sinks": "all", "scoring_func": "sigmoid", "precision.norm": "scale_then_cast",
        "precision.router": "float32_weight", "precision.attention_upcast": True,
    },
    derive=derive,
    restore=restore,
    rules=[*renames(SHARED), Rule(SINKS + "softmax_offset", SINKS + "sinks"), *QWEN3.rules],
    tiny=[
        tiny_experts(
            num_hidden_layers=5, sliding_window=5, shared_expert_intermediate_size=36,
            layer_types=["full_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        ),
        tiny_experts(
            sliding_window=4, shared_expert_intermediate_size=20, layer_types=["sliding_attention"] * 3,
            mlp_only_layers=[1], norm_topk_prob=False, attention_bias=True, tie_word_embeddings=True,
        ),
    ],
)  # fmt: skip
