"""North Micro (Cohere 2026), text: Cohere 2 rotated by halves, with one rotation per kind of layer or none."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .cohere import FIELDS, FIXED
from .shared_common import LLAMA_RULES, restore_window, tiny, window_fields


def derive(theirs: Theirs) -> Keys:
    scale = {"logits_scaling": 1 / theirs.logit_scale} if theirs.logit_scale is not None else {}
    tables = rope(theirs)
    if not any(tables.get(layer_type) for layer_type in theirs.layer_types):
        return {"position_embedding_type": "none"} | window_fields(theirs) | scale
    return {"rope_parameters": tables} | window_fields(theirs) | scale


def restore(ours: Ours) -> Keys:
    tables = restore_rope(ours) or dict.fromkeys(ours.layer_types)
    return {"rope_parameters": tables, "logit_scale": 1 / ours.logits_scaling} | restore_window(ours)


PLAIN = {"rope_type": "default", "rope_theta": 1e4}
FAMILY = Family(
    fields=FIELDS,
    fixed=FIXED | {"rope_interleave": False, "precision.rope": "activation"},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., rope_parameters={"full_attention": PLAIN}),
        tiny(
            head_dim=..., num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=5,
            rope_parameters={"sliding_attention": PLAIN | {"mrope_section": [2, 1, 1]}, "full_attention": None},
            logit_scale=0.25, attention_bias=True, tie_word_embeddings=False,
        ),
    ],
)  # fmt: skip
