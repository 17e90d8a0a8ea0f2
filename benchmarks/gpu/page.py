"""What was measured, for people: the table of a run, a page of results, and the part of the README."""

import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin gpu: python -m benchmarks gpu --publish -->", "<!-- end gpu -->"
# The results that the README shows.
NAME = "gpu_h200"
WORDS = {
    "mla": "latent, 128 heads", "gqa": "grouped queries", "sliding": "sliding window", "dsa": "sparse",
    "gdn": "gated delta rule 3:1", "moe": "64 experts",
}  # fmt: skip
# How a token is decoded in the README, the section that has it, and the values of its rows.
WAYS = (
    ("growing cache, eager", "steps", {"cache": "dynamic"}),
    ("static cache, CUDA graph", "steps", {"cache": "static"}),
    ("static cache, compiled", "compiled", {}),
)
CONTEXTS = {8192: "8k", 32768: "32k", 131072: "128k"}
# What stands in columns of its own, or is too long for a table.
HIDDEN = ("section", "name", "trace", "all", "of", "met", "model", "context", "batch", "side", "cache", "form")


@dataclass
class Results:
    """`info` on the run and its rows, each with `section`, `name` and whatever was measured."""

    info: dict
    rows: list[dict]

    @classmethod
    def read(cls, path: Path) -> "Results":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path, name: str) -> None:
        """As JSON and as a page."""
        text = json.dumps({"info": self.info, "rows": self.rows}, indent=1, default=str)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(page(self), encoding="utf-8")

    def failed(self) -> list[dict]:
        """Rows with an error or below their bar."""
        return [row for row in self.rows if "error" in row or row.get("met") is False]

    def of(self, section: str, **values) -> list[dict]:
        """Rows of a section with these values."""
        rows = [row for row in self.rows if row["section"] == section]
        return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def shown(value) -> str:
    """A number with four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def words(row: dict) -> str:
    """The values of a row, those that say something."""
    values = {key: value for key, value in row.items() if key not in HIDDEN and value not in (None, [], {})}
    return "  ".join(f"{key}={shown(value)}" for key, value in values.items())


def mark(row: dict) -> str:
    if "error" in row:
        return "FAILED"
    return {True: "met", False: "MISSED"}.get(row.get("met"), "")


def table(results: Results) -> str:
    """All rows as text, the end of what is printed."""
    lines = ["", f"{'section':9s} {'name':44s} values", "-" * 120]
    lines += [f"{row['section']:9s} {row['name']:44s} {mark(row)} {words(row)}"[:230] for row in results.rows]
    return "\n".join([*lines, summary(results)])


def summary(results: Results) -> str:
    skipped = sum("skipped" in row for row in results.rows)
    return f"{len(results.rows)} rows, {len(results.failed())} failed or missed their target, {skipped} skipped."


def machine(info: dict) -> str:
    """The card and the versions, in words."""
    named = [f"{name} {info[name]}" for name in ("torch", "triton", "transformers") if info.get(name)]
    library = "with" if info.get("flash-linear-attention") else "without"
    commit = f"; zoo at {info['commit']}" if info.get("commit") else ""
    return f"one {info['device']}, {', '.join(named)}, {library} flash-linear-attention{commit}; {info.get('date', '')}"


def page(results: Results) -> str:
    """All rows as markdown, section by section."""
    lines = ["# zoo on one GPU", "", f"`python -m benchmarks gpu` on {machine(results.info)}.", ""]
    lines += [*results.info.get("notes", []), ""] if results.info.get("notes") else []
    lines += [summary(results), ""]
    lines += [
        "`share` is of the bandwidth of a copy, of prompts of the rate of a product, both in this run. Ratios are"
    ]
    lines += ["transformers' time over zoo's. What a section asks stands in `benchmarks/gpu/`.", ""]
    for section in dict.fromkeys(row["section"] for row in results.rows):
        lines += [f"## {section}", "", "| name | bar | values |", "|---|---|---|"]
        for row in results.of(section):
            lines.append(f"| {row['name']} | {mark(row)} | {cell(row)} |")
        lines.append("")
    return "\n".join(lines)


def cell(row: dict) -> str:
    """The values of a row in a cell of a table."""
    return words(row).replace("|", "\\|").replace("\n", " ").replace("  ", ", ")[:400]


# -- the README --------------------------------------------------------------------------------------------------------


def publish(path: Path, name: str) -> str:
    """Results of a run to benchmarks/results, and the README's part where it shows this name."""
    Results.read(path).write(RESULTS, name)
    if name == NAME:
        README.write_text(with_part(README.read_text(encoding="utf-8"), readme_part()), encoding="utf-8")
    return f"written: {RESULTS / name}.json and .md"


def with_part(text: str, part: str) -> str:
    """The README with its part about the GPU replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{part}{END}{rest.split(END)[1]}"


def part_of(text: str) -> str:
    """What stands between the marks."""
    return re.search(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", text, flags=re.DOTALL)[1]


def readme_part(folder: Path = RESULTS) -> str:
    """The short table of the results that are there; nothing where there are none."""
    store = folder / f"{NAME}.json"
    if not store.is_file():
        return ""
    results = Results.read(store)
    head = f"`python -m benchmarks gpu` on {machine(results.info)} (`benchmarks/results/{NAME}.md` has all rows)."
    lines = ["", *filled(f"{head} {correctness(results)}"), ""]
    lines += ["| one token of a one-layer model, ms | " + " | ".join(CONTEXTS.values()) + " |"]
    lines += ["|---|" + "---|" * len(CONTEXTS)]
    lines += step_lines(results)
    for sentence in (planning(results), bandwidth(results), prompts(results)):
        lines += ["", *filled(sentence)] if sentence else []
    return "\n".join([*lines, "", ""])


def filled(text: str) -> list[str]:
    """Lines of a paragraph."""
    return textwrap.wrap(text, 130, break_long_words=False, break_on_hyphens=False)


def correctness(results: Results) -> str:
    """How many mixers and ways were compared, and how many are right."""
    rows = [row for row in results.of("correct") if "ways" in row]
    ways, bad = sum(row["ways"] for row in rows), sum(len(row["bad"]) for row in rows)
    said = (
        f"{len(rows)} of {len(results.of('correct'))} mixers were compared in {ways} ways (cache × backend × form × "
        f"dtype) with a CPU in float32: {ways - bad} are within their limits."
    )
    tried = [row for row in results.of("traced") if "skipped" not in row]
    met = len(results.of("traced", met=True))
    return f"{said} Compiled, {met} of {len(tried)} are right in one graph that is recorded once." if tried else said


def step_lines(results: Results) -> list[str]:
    """Milliseconds of transformers → zoo (ratio): in eager mode, as a captured graph, as torch.compile makes it."""
    found = []
    for name, word in WORDS.items():
        for how, section, values in WAYS:
            cells = [
                pair_cell(results.of(section, model=name, context=context, batch=1, **values)) for context in CONTEXTS
            ]
            if any(cells):
                found.append(f"| {word}, {how} | " + " | ".join(cells) + " |")
    return found


def pair_cell(rows: list[dict]) -> str:
    """Both sides of a case as zoo runs it by default; empty where one was not measured."""
    rows = [row for row in rows if "us" in row and row.get("form", "chosen") == "chosen" and "not_captured" not in row]
    times = {row["side"]: row["us"] / 1e3 for row in rows}
    if len(times) < 2:
        return ""
    theirs, ours = times["transformers"], times["zoo"]
    return f"{theirs:.2f} → {ours:.2f} ({theirs / ours:.2g} ×)"


def planning(results: Results) -> str:
    """What most of the slowest steps are."""
    slow = [row for row in results.of("steps") if row.get("note") and "us" in row]
    if not slow:
        return ""
    return (
        "Transformers → zoo, batch 1. Steps over a growing cache of 50 ms and more are cuDNN's, which torch chooses "
        "for one query over many keys: it plans again for each length."
    )


def bandwidth(results: Results) -> str:
    """The share of the copy's bandwidth that attention alone reaches at 32k × 8."""
    shares = []
    for name, word in (("mla", WORDS["mla"]), ("mla 64 heads", "64 heads"), ("gqa", WORDS["gqa"])):
        rows = results.of("core", model=name, context=32768, batch=8, form="chosen")
        shares += [f"{word} {row['share']:.2f}" for row in rows if "share" in row]
    ceilings = [row for row in results.of("ceilings") if "copy_GBps" in row]
    if not shares or not ceilings:
        return ""
    return (
        "Attention of one token alone at 32k × 8 reads its cache at this share of a copy's "
        f"{ceilings[0]['copy_GBps']:,.0f} GB/s: {', '.join(shares)}."
    )


def prompts(results: Results) -> str:
    """Milliseconds of a prompt, transformers → zoo (ratio)."""
    found = []
    for name, word in WORDS.items():
        times = {row["side"]: row["ms"] for row in results.of("prompts", model=name) if "ms" in row}
        if len(times) == 2:
            theirs, ours = times["transformers"], times["zoo"]
            word = "latent, 64 heads" if name == "mla" else word
            found.append(f"{word} {theirs:.1f} → {ours:.1f} ({theirs / ours:.2f} ×)")
    return f"A prompt of 8192 tokens, ms: {'; '.join(found)}." if found else ""
