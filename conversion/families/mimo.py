"""MiMo 7B (Xiaomi 2025, arXiv 2505.07608): Qwen2, and a layer that predicts one token more."""

from dataclasses import replace

from ..engine.rules import Keep
from .qwen2 import FAMILY as QWEN2

FAMILY = replace(
    QWEN2,
    reads="qwen2",
    prepare=lambda raw: raw | {"model_type": "qwen2"},
    architecture="MiMoForCausalLM",
    rules=[Keep("model.mtp_layers.{*}"), *QWEN2.rules],
    tiny=(),
)
