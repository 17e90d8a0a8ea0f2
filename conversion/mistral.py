"""Mistral 7B (Jiang et al. 2023): Llama without biases; all layers slide when there is a window."""

from .family import Family, restore_rope, rope
from .rules_common import LLAMA_FIELDS, LLAMA_RULES

_SIZES = dict(vocab_size=101, hidden_size=48, intermediate_size=80, num_attention_heads=6, num_key_value_heads=2)
_SIZES |= dict(num_hidden_layers=3, head_dim=12, max_position_embeddings=64)

FAMILY = Family(
    fields=LLAMA_FIELDS | {"sliding_window": "sliding_window"},
    derive=lambda theirs: {"rope_parameters": rope(theirs)},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=LLAMA_RULES,
    tiny=[dict(_SIZES, sliding_window=5), dict(_SIZES, sliding_window=None, tie_word_embeddings=True)],
)
