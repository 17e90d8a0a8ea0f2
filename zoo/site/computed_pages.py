"""Pages of the site that are made of what the code says: flags, models, what a GPU measured."""

import json
from typing import Any

from benchmarks.gpu.page import readme_part
from description_zoo.flags import flags
from description_zoo.numbers import short_bytes
from zoo.cli.inspect import COLUMNS, cells

from .concepts import CONCEPTS, flags_of
from .data import badges_of, gallery, in_flops

ASIDE = "\n\n"
FLAGS = """
The {count} fields of `ZooConfig`, by concept, as `zoo flags` has them. A field of a concept that a model does not
select stays `null`; one that contradicts another is refused when the config is made. A name with a dot is a key
of a table: `precision.norm` is set by `precision={{"norm": ...}}`.
""".strip()
OF_A_FAMILY = "Sizes here are the defaults of its configuration class in transformers."
GALLERY = """
---
hide:
  - navigation
  - toc
---

# Gallery

The {presets} architectures of `zoo presets`, and the {families} families that convert there and back, each as its
configuration class in transformers has it by default. A column of a picture is a layer: above how it mixes tokens,
below what it does with channels. All numbers are those of `zoo inspect`; `zoo site OUT my/config.json` writes this page
with models of your own.
""".strip()
GPU = """# On a GPU

Nothing needs one: every operation has a plain form in torch. What is faster on a GPU is chosen once, when zoo is
imported: transformers' kernels, flash-linear-attention where it is installed, and zoo's own operations in Triton.

{measured}

All rows: [one H200](results/gpu_h200.md), [its kernels](results/gpu_h200_kernels.md). On a card of your own, in less
than six minutes:

```sh
python -m benchmarks gpu --out results
```

What a model takes there, before it is loaded:

```sh
zoo inspect deepseek-v3 --gpu h100 --tp 8 --ep 32 --context 32768 --batch 8
```

How ranks share a large model: [placing a large model](placement.md).
"""


def flags_page() -> str:
    """Every field of ZooConfig: a table for each group."""
    every, guides = flags(), guides_of_flags()
    parts = [
        "# Flags",
        FLAGS.format(count=len(every)),
    ]
    groups = {}
    for name, facts in every.items():
        groups.setdefault((facts["group"], facts["about"]), []).append(name)
    for (group, about), names in groups.items():
        parts += [f"## {group}", about, *(flag_entry(every[name], guides.get(name)) for name in names)]
    return ASIDE.join(parts) + "\n"


def guides_of_flags() -> dict[str, str]:
    """{flag: the guide that explains it}, the first where there are several."""
    found, every = {}, flags()
    for slug, concept in CONCEPTS.items():
        for name in flags_of(concept, every):
            found.setdefault(name, slug)
    return found


def flag_entry(facts: dict[str, Any], guide: str | None) -> str:
    """One field: a heading to link to, what it means, what it takes, where it is from."""
    allowed = ", ".join(f"`{one}`" for one in facts["allowed"] or ())
    default = "derived, or off" if facts["default"] is None else f"`{json.dumps(facts['default'])}`"
    taken = {
        "Takes": f"{facts['takes']}: {allowed}" if allowed else facts["takes"],
        "Default": default,
        "Needs": facts["needs"],
        "By layer": facts["by_layer"],
    }
    origin = {
        "Source": facts["source"],
        "File": f"[{facts['file']}](source/{facts['file']}.md)",
        "Guide": f"[{CONCEPTS[guide].title}](concepts/{guide}.md)" if guide else None,
    }
    lines = [". ".join(f"{word}: {said}" for word, said in found.items() if said) for found in (taken, origin)]
    heading = f"### `{facts['name']}` {{ #{facts['name']} }}"
    return f"{heading}\n\n{facts['meaning']}\n\n{lines[0]}.\n{{ .zoo-facts }}\n\n{lines[1]}\n{{ .zoo-facts }}"


def gallery_page(entries: list[dict[str, Any]]) -> str:
    """The gallery: HTML of data.py on a page of the site."""
    kinds = [sum(entry["kind"] == kind for entry in entries) for kind in ("presets", "families")]
    head = GALLERY.format(presets=kinds[0], families=kinds[1])
    body = gallery(entries, page_of="{key}.html")
    return f'{head}\n\n{body}\n\n<script src="models.js"></script>\n<script src="gallery.js"></script>\n'


def model_page(entry: dict[str, Any], report: dict[str, Any], card: str = "") -> str:
    """One model: drawing, numbers, layers, flags, and the card of a family."""
    key, name = entry["key"], entry["name"]
    badges = " · ".join(f"**{said}** {what}" for said, what in badges_of(entry))
    command = f"zoo inspect {name}" if entry["kind"] == "presets" else f"zoo families {name}"
    parts = [
        "---\nhide:\n  - navigation\n---",
        f"# {name}",
        f"{entry['about']} {OF_A_FAMILY if entry['kind'] == 'families' else ''}".strip(),
        f'`{command}`, <a href="../index.html#one={key}">compare with another</a>',
        badges,
        card,
        "## Drawing",
        f"![{name}: {entry['pattern']}](../drawings/{key}.svg)",
        "## Numbers",
        numbers_table(entry),
        "## Layers",
        layers_table(report),
        "## Config",
        "What differs from `ZooConfig()`:",
        config_block(entry),
    ]
    return ASIDE.join(part for part in parts if part) + "\n"


def numbers_table(entry: dict[str, Any]) -> str:
    """Totals, then cache and operations by context."""
    totals = entry["totals"]
    rows = [("parameters", f"{totals['parameters']:,}"), ("active for a token", f"{totals['active_parameters']:,}")]
    rows += [("in embedding and head", f"{totals['embedding_parameters']:,}")]
    if totals["prediction_parameters"]:
        rows += [("in layers that predict further tokens", f"{totals['prediction_parameters']:,}")]
    rows += [
        (
            "width, vocabulary, longest context",
            " · ".join(f"{totals[n]:,}" for n in ("hidden_size", "vocab_size", "max_position_embeddings")),
        ),
        (f"weights in {totals['dtype']}", short_bytes(totals["bytes"])),
        ("layers", entry["pattern"]),
    ]
    for length, held in entry["cache"].items():
        count = entry["flops"][length]
        ways = {"a decoded token": "decode", "of a prompt": "prompt", "of training": "train"}
        said = ", ".join(f"{in_flops(count[way])} {words}" for words, way in ways.items())
        said = f"{short_bytes(held)} of cache; {said}"
        rows.append((f"at {int(length):,} tokens", said))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)])


def layers_table(report: dict[str, Any]) -> str:
    """The table of `zoo inspect`: a row for each kind of layer."""
    from description_zoo.difference import numbers

    kinds = {}
    for layer in report["layers"]:
        kinds.setdefault(cells(layer), []).append(layer["layer"])
    rows = [(numbers(places), *words) for words, places in kinds.items()]
    shown = [index for index in range(len(COLUMNS)) if index < 2 or any(row[index] for row in rows)]
    lines = [[COLUMNS[index] for index in shown], ["---"] * len(shown)]
    lines += [[row[index].replace("|", r"\|") for index in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def config_block(entry: dict[str, Any]) -> str:
    """The fields that a model sets."""
    fields = {name: entry["flags"][name] for name in entry["stated"] if name in entry["flags"]}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items())
    return f"```json\n{{\n{lines}\n}}\n```"


def gpu_page() -> str:
    """What one card measured, and where all rows are."""
    return GPU.format(measured=readme_part().strip())
