"""Writes what the gallery is made of: models.json, a drawing and a ribbon for each model, and a page that shows them
without any server."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from description_zoo.numbers import short, short_bytes
from description_zoo.picture import architecture_svg

from .models import KINDS, Shown, entry_of, shown_models
from .ribbon import legend, ribbon

STATIC = Path(__file__).with_name("static")


def write_site(out: Path, yours: Sequence[str] = (), told: Callable[[str], None] = lambda name: None) -> int:
    """The gallery and the explorer as a folder that opens in a browser: index.html, models.json, drawings/, ribbons/,
    explorer/. `told` hears of each model. Returns how many models there are; raises UserError, or ValueError with what
    is wrong with one of `yours`, before anything is written."""
    with without_notes():
        models = list(shown_models(yours))
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
            entries = write_models(folder := Path(made), models, told)
            page = (STATIC / "index.html").read_text(encoding="utf-8")
            (folder / "index.html").write_text(page.replace("{{gallery}}", gallery(entries)), encoding="utf-8")
            write_explorer(folder / "explorer")
            shutil.copytree(folder, out, dirs_exist_ok=True)
    return len(entries)


def write_models(
    out: Path,
    models: Iterable[Shown],
    told: Callable[[str], None] = lambda name: None,
    keep: list[tuple[dict[str, Any], dict[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """What is computed of each model: `models.json`, the same as a script, drawings and ribbons, and the script and
    style of the gallery. Returns the entries of models.json; `keep` gets each with the report that it is of."""
    entries = []
    for shown in models:
        told(shown.name)
        entry, report = entry_of(shown)
        for folder, document in (
            ("drawings", architecture_svg(report)),
            ("ribbons", ribbon(shown.name, entry["pattern"], report["layers"])),
        ):
            path = out / folder / f"{shown.key}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document, encoding="utf-8")
        entries.append(entry)
        if keep is not None:
            keep.append((entry, report))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    (out / "models.json").write_text(text, encoding="utf-8")
    # A page that is opened from a disk may load scripts and no JSON.
    (out / "models.js").write_text(f"window.zooModels = {text};\n", encoding="utf-8")
    for name in ("gallery.js", "gallery.css"):
        shutil.copy(STATIC / name, out / name)
    return entries


def write_explorer(out: Path, guides: str | None = None) -> None:
    """The explorer's pages and their data. `guides`: where the guides stand from there."""
    from .explorer import write

    write(out, guides, home="../index.html")


@contextmanager
def without_notes() -> Iterator[None]:
    """What a config says of training is nothing that the gallery has to repeat."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def gallery(entries: list[dict[str, Any]], page_of: str = "drawings/{key}.svg") -> str:
    """The gallery as HTML: what filters, sorts and compares, a card for each model, which leads to `page_of` it."""
    words = sorted({word for entry in entries for word in entry["words"]})
    kinds = dict.fromkeys(entry["kind"] for entry in entries)
    options = "".join(
        f'<option value="{kind}">{escape(said)}</option>' for kind, said in KINDS.items() if kind in kinds
    )
    filters = "".join(f'<button type="button" aria-pressed="false">{escape(word)}</button>' for word in words)
    names = "".join(f'<option value="{escape(entry["key"])}">' for entry in entries)
    return f"""<div id="zoo-gallery">
<form class="zoo-controls">
<label>Find <input type="search" name="find" placeholder="a name or a word"></label>
<label>Show <select name="kind"><option value="">all</option>{options}</select></label>
<label>Sort by <select name="sort"><option value="">order of publication</option>
<option value="name">name</option><option value="parameters">parameters</option>
<option value="cache">cache of a token</option><option value="flops">operations of a token</option></select></label>
</form>
<div class="zoo-words">{filters}</div>
{legend()}
<section id="zoo-diff"><h2>Compare two</h2>
<form class="zoo-controls">
<label>One <input name="one" list="zoo-models"></label>
<label>Other <input name="other" list="zoo-models"></label>
<datalist id="zoo-models">{names}</datalist>
</form>
<div class="zoo-result" aria-live="polite"></div></section>
<p class="zoo-count" aria-live="polite"></p>
<ul class="zoo-cards">{"".join(card(entry, page_of) for entry in entries)}</ul>
</div>"""


def card(entry: dict[str, Any], page_of: str) -> str:
    """One model of the gallery."""
    key, name = escape(entry["key"]), escape(entry["name"])
    totals, (_, count) = entry["totals"], flops_at(entry)
    sorted_by = {
        "parameters": totals["parameters"],
        "cache": totals["cache_bytes_per_token"],
        "flops": count["decode"],
    }
    data = "".join(f' data-{word}="{number}"' for word, number in sorted_by.items())
    badges = "".join(f'<span class="zoo-badge" title="{what}">{said}</span>' for said, what in badges_of(entry))
    alt = escape(f"{entry['name']}: {entry['pattern']}")
    return (
        f'<li class="zoo-card" id="{key.replace("/", "-")}" data-key="{key}" data-kind="{entry["kind"]}"{data} '
        f'data-words="{escape("|".join(entry["words"]))}">'
        f'<a href="{page_of.format(key=key)}"><img loading="lazy" width="320" height="44" src="ribbons/{key}.svg" '
        f'alt="{alt}"><b>{name}</b></a><span class="zoo-pattern">{escape(entry["pattern"])}</span>'
        f'<span class="zoo-badges">{badges}</span><button type="button" class="zoo-pick">compare</button></li>'
    )


def flops_at(entry: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """(tokens of context, operations there): 8,192 or what a model can have."""
    lengths = sorted(map(int, entry["flops"]))
    length = 8192 if 8192 in lengths else lengths[-1]
    return length, entry["flops"][str(length)]


def in_flops(count: float) -> str:
    """8_810_000_000 -> "8.81 GFLOP"."""
    return short(count, units=(" ", " K", " M", " G", " T")) + "FLOP"


def badges_of(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """(number, what it is) of parameters, cache and operations."""
    totals, (length, count) = entry["totals"], flops_at(entry)
    size = short(totals["parameters"])
    if totals["active_parameters"] != totals["parameters"]:
        size += f", {short(totals['active_parameters'])} active"
    parts = [f"{short_bytes(totals['cache_bytes_per_token'])} a token"] if totals["cache_bytes_per_token"] else []
    parts += [f"{short_bytes(totals['window_bytes'])} of windows"] if totals["window_bytes"] else []
    parts += [f"{short_bytes(totals['state_bytes'])} of state"] if totals["state_bytes"] else []
    return [
        (size, "parameters"),
        (f"KV {' + '.join(parts) or 'none'}", f"cache of one sequence in {totals['dtype']}"),
        (in_flops(count["decode"]), f"operations of a decoded token at {length:,} tokens of context"),
    ]
