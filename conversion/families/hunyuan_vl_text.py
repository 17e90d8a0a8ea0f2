"""The text model of HunyuanOCR (Tencent 2025, arXiv 2511.19575): Hunyuan's dense models."""

from dataclasses import replace

from .hunyuan_v1_dense import FAMILY as HUNYUAN

FAMILY = replace(HUNYUAN, tiny=())
