"""Granite MoE with a shared expert (IBM 2025): GraniteMoE with one MLP that every token visits."""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs
from ..engine.rules import Rule, Split, renames
from .granitemoe import FAMILY as GRANITE
from .granitemoe import RULES, SCALES, TINY

MLP, OURS = "model.layers.{i}.shared_mlp.", "model.layers.{i}.mlp.shared_experts."


def derive(theirs: Theirs) -> Keys:
    return GRANITE.derive(theirs) | {"shared_expert_intermediate_size": theirs.shared_intermediate_size or None}


def restore(ours: Ours) -> Keys:
    return GRANITE.restore(ours) | {"shared_intermediate_size": ours.shared_expert_intermediate_size or 0}


SHARED_RULES = [
    Rule(MLP + "input_linear.weight", [OURS + "gate_proj.weight", OURS + "up_proj.weight"], Split(parts=2)),
    *renames({"output_linear": "down_proj"}, MLP, OURS),
    *RULES,
]
FAMILY = replace(
    GRANITE,
    derive=derive,
    restore=restore,
    rules=SHARED_RULES,
    tiny=[
        TINY | SCALES | {"shared_intermediate_size": 36},
        TINY | {"shared_intermediate_size": 20, "tie_word_embeddings": True, "attention_bias": True},
        TINY,
    ],
)
