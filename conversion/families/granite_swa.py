"""Granite SWASH 2B (IBM 2026): Granite with a sink per head and layers that slide but every fourth; each layer has a
rotary base, 0 for none."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..errors import ConversionError
from .granite import FIELDS
from .granite import derive as granite
from .granite import restore as restore_granite
from .shared_common import LLAMA_RULES, restore_window, tiny, window_fields


def derive(theirs: Theirs) -> Keys:
    """One rotation if the layers agree on a base, else one per kind of layer."""
    found = granite(theirs) | window_fields(theirs)
    bases = {}
    for layer_type, theta in zip(theirs.layer_types, theirs.layer_rope_theta, strict=True):
        if theta and bases.setdefault(layer_type, theta) != theta:
            raise ConversionError(
                f"layer_rope_theta has {bases[layer_type]} and {theta} for {layer_type!r}: use one per layer type."
            )
    shared, rotates = found["rope_parameters"], [int(bool(theta)) for theta in theirs.layer_rope_theta]
    tables = {layer_type: shared | {"rope_theta": theta} for layer_type, theta in bases.items()}
    if len(set(bases.values())) < 2:
        tables = next(iter(tables.values()), shared)
    return found | {"rope_parameters": tables, "no_rope_layers": None if all(rotates) else rotates}


def restore(ours: Ours) -> Keys:
    tables, names = ours.rope_tables, [ours.rope_table_of(index) for index in range(ours.num_hidden_layers)]
    bases = [tables[name]["rope_theta"] if name else 0 for name in names]
    table = next((tables[name] for name in names if name), ours.rope_parameters)
    shared = {"rope_parameters": dict(table), "layer_rope_theta": bases}
    return restore_granite(ours) | restore_window(ours) | shared


FAMILY = Family(
    fields=FIELDS,
    fixed={"attention_sinks": "all"},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., num_hidden_layers=5, sliding_window=5, attention_multiplier=0.17),
        tiny(
            head_dim=..., num_hidden_layers=4, sliding_window=4, layer_rope_theta=[0, 1e4, 1e4, 1e4],
            embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0, tie_word_embeddings=False,
        ),
        tiny(
            head_dim=..., sliding_window=6, layer_types=["sliding_attention", "full_attention", "full_attention"],
            layer_rope_theta=[1e4, 5e5, 0], attention_bias=True, mlp_bias=True,
        ),
    ],
)  # fmt: skip
