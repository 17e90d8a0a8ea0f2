"""The text model of Qwen3-VL (Qwen team 2025): Qwen3, none of whose layers slides."""

from dataclasses import replace

from ..engine.family import restore_rope, rope
from .qwen3 import FAMILY as QWEN3

FAMILY = replace(
    QWEN3,
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    tiny=(),
)
