"""Granite SWASH 3B-A600M (IBM 2026): Granite's experts over the windows, sinks and rotations of Granite SWASH 2B."""

from dataclasses import replace

from .granite_swa import FAMILY as WINDOWS
from .granitemoe import IN_MEMORY, SCALES, TINY
from .granitemoeshared import FAMILY as GRANITE

FAMILY = replace(
    GRANITE,
    fixed=GRANITE.fixed | WINDOWS.fixed,
    derive=lambda theirs: GRANITE.derive(theirs) | WINDOWS.derive(theirs),
    restore=lambda ours: GRANITE.restore(ours) | WINDOWS.restore(ours),
    rules=[*IN_MEMORY, *GRANITE.rules],
    tiny=[
        TINY | SCALES | {"num_hidden_layers": 5, "sliding_window": 5},
        TINY
        | {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "layer_rope_theta": [1e4, 5e5, 0]}
        | {"sliding_window": 6, "shared_intermediate_size": 20, "tie_word_embeddings": True, "attention_bias": True},
    ],
)
