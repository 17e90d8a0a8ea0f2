"""Kimi K2 (Moonshot AI 2025, arXiv 2507.20534): DeepSeek-V3 with 384 experts, under a model_type of its own."""

from dataclasses import replace

from .deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(
    DEEPSEEK_V3,
    reads="deepseek_v3",
    prepare=lambda raw: raw | {"model_type": "deepseek_v3"},
    architecture="DeepseekV3ForCausalLM",
    tiny=(),
)
