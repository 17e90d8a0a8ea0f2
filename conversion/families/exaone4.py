"""EXAONE 4.0 (LG AI Research 2025): norms on the outputs, on queries and keys; full layers between sliding ones do not
rotate."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .olmo2 import RULES
from .shared_common import LLAMA_FIELDS, restore_window_fields, tiny, window_fields


def prepare(raw: Keys) -> Keys:
    """Without a window every layer is full; transformers' class divides by zero there."""
    if raw.get("sliding_window", 0) is None and raw.get("layer_types") is None:
        return raw | {"layer_types": ["full_attention"] * raw["num_hidden_layers"]}
    return raw


def derive(theirs: Theirs) -> Keys:
    rotates = [int(theirs.sliding_window is None or kind == "sliding_attention") for kind in theirs.layer_types]
    return {"rope_parameters": rope(theirs), "no_rope_layers": None if all(rotates) else rotates} | window_fields(
        theirs
    )


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours)} | restore_window_fields(ours)


FAMILY = Family(
    fields=LLAMA_FIELDS,
    fixed={"block_type": "output_norm", "qk_norm": "rms_norm"},
    prepare=prepare,
    derive=derive,
    restore=restore,
    rules=RULES,
    tiny=[
        tiny(head_dim=..., num_hidden_layers=4, sliding_window=5),
        tiny(
            head_dim=..., sliding_window=None, layer_types=["full_attention"] * 3, tie_word_embeddings=True,
            rms_norm_eps=1e-6,
        ),
    ],
)  # fmt: skip
