"""The text model of the thinker of Qwen3-Omni (Qwen team 2025, arXiv 2509.17765): Qwen3-MoE, none of whose layers
slides."""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs, restore_rope, rope
from .qwen3_moe import FAMILY as QWEN3_MOE
from .shared_experts import normed, restore_stepped, stepped


def derive(theirs: Theirs) -> Keys:
    return {"rope_parameters": rope(theirs)} | stepped(theirs) | normed(theirs)


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours)} | restore_stepped(ours)


FAMILY = replace(
    QWEN3_MOE,
    fields={name: ours for name, ours in QWEN3_MOE.fields.items() if name != "sliding_window"},
    derive=derive,
    restore=restore,
    tiny=(),
)
