"""GLM-4 9B (GLM team 2024): Llama with half of each head rotated, in pairs, and gate and up projection in one."""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import Rule, Split
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

MLP = "model.layers.{i}.mlp."
GATE_UP = Rule(MLP + "gate_up_proj.weight", [MLP + "gate_proj.weight", MLP + "up_proj.weight"], Split(parts=2))

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias"},
    fixed={"attention_out_bias": False, "rope_interleave": True},
    derive=lambda theirs: {"rope_parameters": rope(theirs, partial=True)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[GATE_UP, *LLAMA_RULES],
    tiny=[
        tiny(pad_token_id=0),
        tiny(attention_bias=False, tie_word_embeddings=True, partial_rotary_factor=1.0, pad_token_id=0),
    ],
)
