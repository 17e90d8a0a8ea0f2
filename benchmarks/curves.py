"""Decode time per token against the length of the context: one picture and one table."""

import json

from . import cases
from .decode import decode
from .table import folder_of, machine

CASES = {
    "gqa": "grouped queries", "sliding": "sliding window", "mla": "latent", "dsa": "sparse", "gdn": "gated delta rule",
}  # fmt: skip
# Fewer heads where transformers' own step would not fit beside the others at the longest contexts.
FIELDS = {
    "mla": {"num_attention_heads": 16, "num_key_value_heads": 16},
    "dsa": {"num_attention_heads": 16, "num_key_value_heads": 16},
}


def contexts(least: int, most: int) -> list[int]:
    """Powers of two times `least`, up to `most`."""
    found = []
    while least <= most:
        found.append(least)
        least *= 2 if least * 2 > most or most <= 4096 else 4
    return found


def draw(arguments, options: cases.Options) -> str:
    """Measures what is asked for, keeps earlier results of the same file, writes the table and the picture."""
    folder = folder_of(arguments)
    store = folder / f"{arguments.name}.json"
    known = json.loads(store.read_text()) if store.is_file() else {}
    for case in arguments.case:
        fields = {} if options.tiny else {case: FIELDS.get(case, {})}
        here = cases.Options(options.rounds, options.dtype, options.device, options.tiny, fields)
        for context in contexts(arguments.min, arguments.max):
            found = decode(case, context, here)
            known.setdefault(case, {})[str(context)] = found
            print(f"{case} {context}: {found['seconds']}", flush=True)
            store.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page = folder / f"{arguments.name}.md"
    page.write_text("\n".join(lines(known, arguments.name, options)) + "\n", encoding="utf-8")
    picture(known, folder / f"{arguments.name}.png")
    return f"written: {page}"


def lines(known: dict, name: str, options: cases.Options) -> list[str]:
    """The page: what was run, and a row per context."""
    page = [f"# Decode time per token against context\n\n![milliseconds against tokens]({name}.png)\n"]
    page += [f"`python -m benchmarks plot --name {name}` on {machine(options)}.", ""]
    page += ["Milliseconds per token of a one-layer model, transformers → zoo (ratio).", ""]
    found = {int(context) for by_context in known.values() for context in by_context}
    named = [case for case in CASES if case in known]
    page += ["| context | " + " | ".join(CASES[case] for case in named) + " |", "|" + "---|" * (len(named) + 1)]
    for context in sorted(found):
        cells = [cell(known[case].get(str(context))) for case in named]
        page.append(f"| {context} | " + " | ".join(cells) + " |")
    return page


def cell(one: dict | None) -> str:
    if one is None:
        return ""
    theirs, ours = (1e3 * one["seconds"][side] for side in ("transformers", "zoo"))
    return f"{theirs:.1f} → {ours:.1f} ({one['ratio']:.1f})"


def picture(known: dict, path) -> None:
    """One panel per side, the same axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("No picture: matplotlib is not installed (pip install matplotlib).")
        return
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, side in zip(panels, ("transformers", "zoo"), strict=True):
        for case, by_context in known.items():
            points = sorted((int(context), 1e3 * one["seconds"][side]) for context, one in by_context.items())
            panel.plot(*zip(*points, strict=True), marker="o", label=CASES[case])
        panel.set(title=side, xlabel="tokens of context", xscale="log", yscale="log")
        panel.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("milliseconds per token")
    panels[1].legend()
    figure.savefig(path, dpi=110)
