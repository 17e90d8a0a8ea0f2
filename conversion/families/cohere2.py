"""Command R7B, Command A and Aya Vision (Cohere 2024/25): Cohere where only the sliding layers rotate."""

from ..engine.family import Family, Keys, Theirs
from .cohere import FIELDS, FIXED
from .cohere import derive as cohere
from .cohere import restore as restore_cohere
from .shared_common import LLAMA_RULES, restore_window, tiny, window_fields


def derive(theirs: Theirs) -> Keys:
    rotates = [int(layer_type == "sliding_attention") for layer_type in theirs.layer_types]
    return cohere(theirs) | window_fields(theirs) | {"no_rope_layers": rotates}


FAMILY = Family(
    fields=FIELDS,
    fixed=FIXED,
    derive=derive,
    restore=lambda ours: restore_cohere(ours) | restore_window(ours),
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., num_hidden_layers=4, sliding_window=5, logit_scale=0.25),
        tiny(
            head_dim=..., sliding_window=4, attention_bias=True, tie_word_embeddings=False,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
        tiny(head_dim=..., layer_types=["full_attention"] * 3),
    ],
)  # fmt: skip
