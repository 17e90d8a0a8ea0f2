"""What the README shows at once: a model that mixes concepts, drawn, and the table of families."""

import json
from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.catalog import catalog
from conversion.engine.registry import file_name
from description_zoo.measure import measure
from description_zoo.picture import architecture_svg

# Concepts of five families in one model; the drawing of the README is of this.
MIXED = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "layer_types": "3*linear_attention, full_attention",
    "linear_attention_type": "gated_delta_net",
    "attention_type": "latent",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "attn_output_gate": "headwise",
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 768,
    "use_score_correction_bias": True,
}
# Kinds of families, each with those that no earlier kind has taken.
KINDS = (
    ("recurrences, most of them between attention layers", lambda sets: "linear_attention_type" in sets),
    ("latent attention", lambda sets: "latent" in said(sets, "attention_type")),
    ("experts", lambda sets: "num_experts" in sets),
    (
        "windows or chunks between full attention",
        lambda sets: {"sliding_attention", "chunked_attention"} & {*said(sets, "layer_types")},
    ),
    (
        "LayerNorm, or positions that are learned, relative, or ALiBi",
        lambda sets: "position_embedding_type" in sets or "layer_norm" in said(sets, "norm_type"),
    ),
    ("RMSNorm, RoPE and full attention, as Llama", lambda sets: True),
)


def said(sets: dict[str, Any], flag: str) -> list[str]:
    """The values that a family sets a flag to."""
    value = sets.get(flag)
    return value if isinstance(value, list) else [str(value)]


def mixed() -> str:
    """The model of the picture as code, and the picture."""
    said_as = {name: json.dumps(value) if isinstance(value, str) else repr(value) for name, value in MIXED.items()}
    fields = [f"    {name}={value}," for name, value in said_as.items()]
    code = "\n".join(["```python", "import zoo", "", "config = zoo.Config(", *fields, ")", "```"])
    picture = "![Eight times three gated delta nets and one layer of latent attention, experts behind each]"
    return f"{code}\n\n{picture}(docs/pictures/mixed.svg)"


def mixed_picture() -> str:
    """An SVG document."""
    return architecture_svg(measure(ZooConfig(**MIXED)))


def families_table() -> str:
    """Every family by what sets it apart, with its card."""
    families = catalog()["families"]
    text = {name: facts["concepts"] for name, facts in families.items() if not facts["wrapper"]}
    rows, left = [], dict(text)
    for kind, belongs in KINDS:
        names = [name for name, sets in left.items() if belongs(sets)]
        left = {name: sets for name, sets in left.items() if name not in names}
        rows.append((kind, names))
    rows.append(("a text model inside a larger one", [name for name, facts in families.items() if facts["wrapper"]]))
    lines = ["| | families |", "|---|---|"]
    for kind, names in rows:
        links = ", ".join(f"[{name}](model_cards/{file_name(name)}.md)" for name in names)
        lines.append(f"| {kind} ({len(names)}) | {links} |")
    return "\n".join([f"{len(families)} families convert there and back:", "", *lines])
