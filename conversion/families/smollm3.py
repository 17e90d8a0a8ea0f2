"""SmolLM3 (Hugging Face 2025): Llama in which every fourth layer does not rotate."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, restore_window_fields, tiny, window_fields


def derive(theirs: Theirs) -> Keys:
    rotates = list(theirs.no_rope_layers)
    return {"rope_parameters": rope(theirs), "no_rope_layers": None if all(rotates) else rotates} | window_fields(
        theirs
    )


def restore(ours: Ours) -> Keys:
    rotates = ours.no_rope_layers or [1] * ours.num_hidden_layers
    slides = {"use_sliding_window": ours.sliding_window is not None}
    return {"rope_parameters": restore_rope(ours), "no_rope_layers": rotates} | slides | restore_window_fields(ours)


FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., num_hidden_layers=4, pad_token_id=0),
        tiny(
            head_dim=..., use_sliding_window=True, sliding_window=5, no_rope_layers=[0, 1, 0], pad_token_id=0,
            tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        ),
        tiny(head_dim=..., sliding_window=9, no_rope_layers=[1, 1, 1], pad_token_id=0),
    ],
)  # fmt: skip
