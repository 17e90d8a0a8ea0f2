"""Writes the guides: docs/concepts/*.md and their pictures, and the table of concepts in README.md.

python -m zoo.site.guides            all of them
python -m zoo.site.guides nope       one, or several
"""

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from description_zoo.flags import flags

from .concept import Concept
from .concepts import CONCEPTS, flags_of
from .costs import ablation, cost_table, decode_curve, decode_picture, decodes_as_plain, shape
from .front import families_table, mixed, mixed_picture
from .pictures import pictures_of
from .uses import concepts_of_families, uses_table
from .worked import WORKED

ROOT = Path(__file__).resolve().parents[2]
TEXTS, PAGES = Path(__file__).with_name("text"), ROOT / "docs" / "concepts"
REFERENCES, DECODING = "tests/support/", "milliseconds of a decoded token against the context"
# The guide that measures how the plain model decodes.
PLAINLY = "grouped-query-attention"
FRONT = ROOT / "docs" / "pictures" / "mixed.svg"


def main() -> None:
    """Writes the pages that are asked for, and the tables that list all of them."""
    wanted = sys.argv[1:] or list(CONCEPTS)
    families = concepts_of_families()
    (PAGES / "pictures").mkdir(parents=True, exist_ok=True)
    for slug in wanted:
        concept = CONCEPTS[slug]
        for name, document in picture_files(concept).items():
            (PAGES / "pictures" / name).write_text(document[1], encoding="utf-8")
        (PAGES / f"{slug}.md").write_text(page(concept, families), encoding="utf-8")
        print(slug)
    (PAGES / "index.md").write_text(index(), encoding="utf-8")
    readme = ROOT / "README.md"
    text = with_part(readme.read_text(encoding="utf-8"), "families", families_table())
    text = with_part(with_part(text, "mixed", mixed()), "concepts", readme_table())
    readme.write_text(text, encoding="utf-8")
    FRONT.parent.mkdir(exist_ok=True)
    FRONT.write_text(mixed_picture(), encoding="utf-8")


def page(concept: Concept, families: dict[str, dict[str, Any]]) -> str:
    """One guide as Markdown."""
    said, every = text_of(concept, computed=True), flags()
    parts = [
        f"# {concept.title}",
        f"<!-- written by `python -m zoo.site.guides`; the text is in zoo/site/text/{concept.slug}.md -->",
        said.pop("idea"),
        *(f"![{what}](pictures/{name})" for name, (what, _) in picture_files(concept).items() if what != DECODING),
        "## Formula",
        said.pop("Formula"),
        *(docstring_of(place) for place in concept.classes),
        *section("In code", code(concept)),
        *(f"## {name}\n\n{text}" for name, text in said.items() if name != "When not to"),
        "## Flags",
        config_block(concept),
        flag_table(concept, every),
        "## Costs",
        f"A plain model of {shape()} beside one with the config above, in bfloat16, one sequence, as `zoo inspect` "
        f"counts them:\n\n{cost_table(concept)}",
        *section("Measured", measured(concept)),
        "## Who uses it",
        f"What the default model of each family sets (`zoo families`):\n\n{uses_table(concept, every, families)}",
        "## When not to",
        said["When not to"],
        "## Sources",
        "\n".join(f"- {source}" for source in concept.sources),
        *section("See also", ", ".join(f"[{CONCEPTS[slug].title}]({slug}.md)" for slug in concept.see)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def text_of(concept: Concept, computed: bool = False) -> dict[str, str]:
    """{"idea": ..., heading: ...} of a guide's own text, its worked examples `computed` or left as their names."""
    text = (TEXTS / f"{concept.slug}.md").read_text(encoding="utf-8").strip()
    if computed:
        text = re.sub(r"\{\{(\w+)\}\}", lambda found: WORKED[found[1]](), text)
    idea, *others = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"idea": idea.strip()} | {name: body.strip() for name, body in zip(others[::2], others[1::2], strict=True)}


def picture_files(concept: Concept) -> dict[str, tuple[str, str]]:
    """{file: (what it shows, SVG)}."""
    found = {}
    for index, (what, document) in enumerate(pictures_of(concept).items()):
        found[f"{concept.slug}{f'-{index}' if index else ''}.svg"] = what, document
    if concept.curve:
        found[f"{concept.slug}-decode.svg"] = DECODING, decode_picture(concept.curve)
    return found


def node_of(path: str, name: str) -> tuple[str, ast.AST]:
    """(text of a file, the class or function of that name in it); raises LookupError for none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return text, node
    raise LookupError(f"{path} has no {name}.")


def docstring_of(place: str) -> str:
    """The formula of a class as its docstring has it."""
    path, name = place.split(":")
    said = ast.get_docstring(node_of(path, name)[1]) or ""
    return f"`{name}` of [{path}](../../{path}):\n\n```text\n{said}\n```"


def code(concept: Concept) -> str:
    """The short references that the tests compare with."""
    blocks = []
    for path, name in places(concept):
        text, node = node_of(path, name)
        source = textwrap.dedent(ast.get_source_segment(text, node))
        blocks.append(f"```python\n{source}\n```")
    where = ", ".join(dict.fromkeys(f"[{path}](../../{path})" for path, _ in places(concept)))
    said = f"Slow and obvious: what the tests compare the model with, from {where}."
    return "\n\n".join([said, *blocks]) if blocks else ""


def places(concept: Concept) -> list[tuple[str, str]]:
    """(file, name) of each reference."""
    found = [place.split(":") for place in concept.references]
    return [(path if "/" in path else REFERENCES + path, name) for path, name in found]


def config_block(concept: Concept) -> str:
    """What sets it, and what says what it became."""
    fields = ", ".join(f"{name}={json.dumps(value)}" for name, value in concept.config.items())
    fields = re.sub(r"\btrue\b", "True", re.sub(r"\bfalse\b", "False", fields))
    lines = textwrap.wrap(f"ZooConfig({fields})", 110, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(["```python", "from modeling_zoo import ZooConfig", "", *lines, "```"])


def flag_table(concept: Concept, every: dict[str, dict]) -> str:
    """Every flag with what it takes and means."""
    rows = ["| flag | takes | meaning |", "|---|---|---|"]
    for name in flags_of(concept, every):
        facts = every[name]
        takes = ", ".join(f"`{one}`" for one in facts["allowed"]) if facts["allowed"] else facts["takes"]
        need = f" Needs {facts['needs']}." if facts["needs"] else ""
        rows.append(f"| `{name}` | {takes} | {facts['meaning']}{need} |".replace("||", r"\|\|"))
    return "\n".join(rows)


def measured(concept: Concept) -> str:
    """The curve of decoding, and the ablation."""
    parts = []
    if concept.curve:
        parts.append(
            "One decoded token of a model of one layer against the context, on two CPU cores in bfloat16 "
            "(`python -m benchmarks plot`, [all of them](../../benchmarks/results/decode.md)):\n\n"
            + decode_curve(concept.curve)
            + f"\n\n![{DECODING}](pictures/{concept.slug}-decode.svg)"
        )
    elif decodes_as_plain(concept):
        parts.append(
            "It adds nothing that grows with the context, neither to the cache nor to the operations of a decoded "
            f"token: the measured curve of decoding is that of [{CONCEPTS[PLAINLY].title}]({PLAINLY}.md#measured)."
        )
    return "\n\n".join([*parts, ablation(concept)] if concept.trained else parts).strip()


def index() -> str:
    """The list of guides."""
    rows = [f"- [{concept.title}]({slug}.md): {first_sentence(concept)}" for slug, concept in CONCEPTS.items()]
    return "\n".join(["# Concepts", "", "Each page: idea, formula, code, flags, costs, use.", "", *rows]) + "\n"


def first_sentence(concept: Concept) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text_of(concept)["idea"].split()))[0]


def readme_table() -> str:
    """Concept, flags and files, a row for each guide."""
    lines = ["| concept | flags of `ZooConfig` | file |", "|---|---|---|"]
    for slug, concept in CONCEPTS.items():
        names = ", ".join(f"`{name.removesuffix('.')}`" for name in concept.flags[:4])
        files = ", ".join(f"`{path}`" for path in dict.fromkeys(place.split(":")[0] for place in concept.classes))
        lines.append(f"| [{concept.title}](docs/concepts/{slug}.md) | {names} | {files or '`configuration_zoo/`'} |")
    return "\n".join(lines)


def with_part(text: str, name: str, part: str) -> str:
    """README.md with the part of this name as it is now."""
    begin, end = f"<!-- begin {name}: python -m zoo.site.guides -->", f"<!-- end {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
