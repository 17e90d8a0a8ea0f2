"""What benchmarks/recurrences.py measured, as lines and as a table in benchmarks/results."""

import json
import os
from pathlib import Path

import torch
import transformers

from benchmarks.measuring import in_words
from benchmarks.table import processor

RESULTS = Path(__file__).parent / "results"
SIDES = ("transformers", "zoo")


def show(one: dict) -> str:
    """A measurement as lines for people."""
    lines = [f"{one['case']}" + (f", to be reached {one['bar']:g}" if one["bar"] else "")]
    for threads, found in one["threads"].items():
        theirs, ours = (1e3 * found["seconds"][side] for side in SIDES)
        lines.append(
            f"  threads {threads}: ratio {found['ratio']:.2f}, transformers {theirs:.3f} ms, zoo {ours:.3f} ms, "
            f"largest relative difference {found['difference']:.1e}"
        )
    for side, held in one.get("memory", {}).items():
        if None not in held:
            text = " and ".join(f"{size / 2**20:,.0f} MiB" for size in held)
            lines.append(f"  memory of a prompt and of one twice as long, {side}: {text}")
    return "\n".join(lines)


def write(folder: Path, one: dict, order: list[str]) -> None:
    """Adds a measurement to `recurrences.json`, in place of an earlier one of its case, and writes the page again."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "recurrences.json"
    known = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    known[one["case"]] = json.loads(json.dumps(one | {"machine": machine()}))
    store.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    found = [known[case] for case in order if case in known]
    (folder / "recurrences.md").write_text(page(found), encoding="utf-8")


def machine() -> str:
    """The machine and the versions, in words."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} cores of {processor()}; {versions}"


def page(found: list[dict]) -> str:
    """Ratios against their bars, then what a prompt holds and twice as many tokens of it."""
    lines = ["# Recurrences of zoo against those of transformers", ""]
    for text in dict.fromkeys(one["machine"] for one in found):
        lines += [f"`python benchmarks/recurrences.py --memory --write` on {text}; float32.", ""]
    lines += ["Ratio: transformers' median over zoo's, alternately in one process, on the same inputs or weights."]
    lines += ["Times of steps are per token. The script says what each row compares.", ""]
    lines += ["| case | threads | transformers | zoo | ratio | difference | target |", "|---|---|---|---|---|---|---|"]
    for one in found:
        for threads, row in one["threads"].items():
            theirs, ours = (in_words(row["seconds"][side], "s") for side in SIDES)
            bar = f"≥ {one['bar']:g}: {'met' if row['ratio'] >= one['bar'] else 'missed'}"
            cells = [one["case"], threads, theirs, ours, f"{row['ratio']:.2f}", f"{row['difference']:.1e}", bar]
            lines.append("| " + " | ".join(cells) + " |")
    held = [(one["case"], one["memory"]) for one in found if "memory" in one]
    held = [(case, memory) for case, memory in held if all(None not in sizes for sizes in memory.values())]
    if held:
        lines += ["", "Memory of a prompt beyond its inputs, and of one twice as long:", ""]
        lines += ["| case | transformers | zoo | zoo grows | zoo / transformers |", "|---|---|---|---|---|"]
    for case, memory in held:
        texts = [" → ".join(in_words(size, "B") for size in memory[side]) for side in SIDES]
        (_, theirs), (short, long) = (memory[side] for side in SIDES)
        lines.append(f"| {case} | {texts[0]} | {texts[1]} | {long / short:.2f} × | {long / theirs:.2f} |")
    return "\n".join(lines) + "\n"
