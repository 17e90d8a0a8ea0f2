"""Mellum 2 12B-A2.5B (JetBrains 2026): Qwen3's experts, windows in some layers and a rotation for each kind."""

from dataclasses import replace

from ..engine.family import restore_rope, rope
from ..engine.prediction import BESIDE_IN_WINDOWS, KeepPrediction
from .olmo3 import YARN
from .qwen3_moe import FAMILY as QWEN3
from .shared_common import restore_window, window_fields
from .shared_experts import normed, tiny_experts

PLAIN = {"rope_type": "default", "rope_theta": 1e3}
FAMILY = replace(
    QWEN3,
    fields=QWEN3.fields | {"mlp_layer_types": "mlp_layer_types"},
    derive=lambda theirs: {"rope_parameters": rope(theirs, partial=True)} | window_fields(theirs) | normed(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours), "num_nextn_predict_layers": None}
    | restore_window(ours),
    rules=[KeepPrediction("mtp{*}", BESIDE_IN_WINDOWS), *QWEN3.rules],
    tiny=[
        tiny_experts(num_hidden_layers=4, sliding_window=5, layer_types=["sliding_attention", "full_attention"] * 2),
        tiny_experts(
            sliding_window=4, layer_types=["full_attention", "sliding_attention", "full_attention"],
            rope_parameters={"full_attention": YARN, "sliding_attention": PLAIN}, attention_bias=True,
            mlp_layer_types=["sparse", "dense", "sparse"], norm_topk_prob=False, tie_word_embeddings=True,
        ),
        tiny_experts(),
    ],
)  # fmt: skip
