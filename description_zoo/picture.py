"""The architecture as a picture: an SVG written by hand, tokens at the top, one box for each run of equal layers."""

from html import escape

from .measure import layer_runs, repetitions

WIDTH, LEFT, BOX, GAP = 560, 20, 520, 18
COLOURS = {"mixer": "#dbe9f6", "mlp": "#e5f2dc", "end": "#f1f1f1"}
TEXT = 'font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="13" fill="#1b1b1b"'


def architecture_svg(report: dict) -> str:
    """The report of `measure` -> an SVG document."""
    y, parts = 12, []
    y = _bar(parts, y, f"embedding  {report['vocab_size']:,} × {report['hidden_size']:,}")
    for times, runs in repetitions(list(layer_runs(report["layers"]))):
        y = _runs(parts, y, times, runs)
    y = _bar(parts, y, "norm")
    y = _bar(parts, y, f"head  {report['hidden_size']:,} × {report['vocab_size']:,}", arrow=False)
    title = escape(f"{report['parameters']:,} parameters, {len(report['layers'])} layers")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>"]) + "\n"


def _runs(parts: list[str], y: int, times: int, runs: list) -> int:
    """The boxes of some runs, inside a dashed frame where they stand there several times."""
    if times == 1:
        for run in runs:
            y = _run(parts, y, *run)
        return y
    first, last = runs[0][0], runs[0][0] + times * (runs[-1][1] - runs[0][0] + 1) - 1
    top, y = y, y + 30
    _text(parts, WIDTH // 2, top + 20, f"layers {first}-{last}: {times} times")
    for run in runs:
        y = _run(parts, y, *run)
    frame = f'x="{LEFT - 10}" y="{top}" width="{BOX + 20}" height="{y - top - 8}" rx="8"'
    parts.append(f'<rect {frame} fill="none" stroke="#8a8a8a" stroke-dasharray="5 4"/>')
    return _arrow(parts, y - 8)


def _bar(parts: list[str], y: int, text: str, arrow: bool = True) -> int:
    _box(parts, LEFT, y, BOX, 28, COLOURS["end"])
    _text(parts, WIDTH // 2, y + 19, text)
    return _arrow(parts, y + 28) if arrow else y + 40


def _run(parts: list[str], y: int, first: int, last: int, layer: dict) -> int:
    """A frame with the mixer above the MLP, and how often it stands there."""
    rows = [(kind, text) for kind, text in (("mixer", _mixer(layer)), ("mlp", layer["mlp"])) if text]
    height = 30 + 32 * len(rows)
    _box(parts, LEFT, y, BOX, height, "none")
    name = f"layer {first}" if first == last else f"layers {first}-{last}, {last - first + 1} × the same"
    _text(parts, LEFT + 12, y + 19, f"{name}   {layer['parameters']:,} parameters", anchor="start")
    for index, (kind, text) in enumerate(rows):
        _box(parts, LEFT + 10, y + 26 + 32 * index, BOX - 20, 26, COLOURS[kind])
        _text(parts, WIDTH // 2, y + 44 + 32 * index, text)
    return _arrow(parts, y + height)


def _mixer(layer: dict) -> str:
    return f"{layer['mixer']}, {layer['context']}" if layer["mixer"] else ""


def _arrow(parts: list[str], y: int) -> int:
    middle, end = WIDTH // 2, y + GAP
    parts.append(f'<path d="M{middle} {y} V{end - 1} m-4 -5 l4 5 l4 -5" stroke="#555" fill="none"/>')
    return end


def _box(parts: list[str], x: int, y: int, width: int, height: int, fill: str) -> None:
    size = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="5"'
    parts.append(f'<rect {size} fill="{fill}" stroke="#8a8a8a"/>')


def _text(parts: list[str], x: int, y: int, text: str, anchor: str = "middle") -> None:
    parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" {TEXT}>{escape(text)}</text>')
