"""The architecture as a picture: the residual stream runs down the left, every layer's mixer and MLP hang on it between
the norms that they have, and layers that repeat stand there once."""

from collections.abc import Callable
from typing import NamedTuple

from .kinds import named_fields
from .measure import layer_runs, repetitions
from .numbers import short, short_bytes
from .svg import CHARACTER, Drawing, in_lines

WIDTH, STREAM = 780, 40
NORM_LEFT, NORM_WIDTH, LEFT, RIGHT = 64, 74, 160, 668
INNER, LINE, BARS = RIGHT - LEFT - 20, 16, 3


class Branch(NamedTuple):
    """A sub-layer beside the residual stream: `part` is mixer or mlp, `before` and `after` whether a norm stands
    there."""

    part: str
    before: bool = True
    after: bool = False


class OnStream(NamedTuple):
    """A norm that the residual stream itself goes through."""

    name: str = "norm"


class Together(NamedTuple):
    """Branches that read the residual stream at one place; `one_norm`: through one norm."""

    branches: tuple[Branch, ...]
    one_norm: bool


# As modeling_zoo/block_topologies.py computes them.
PRE = (Branch("mixer"), Branch("mlp"))
TOPOLOGIES = {
    "pre_norm": PRE,
    "sub_norm": PRE,
    "gated_norm": PRE,
    "gated_attn_norm": PRE,
    "shortcut": PRE,
    "hyper_connection": PRE,
    "attention_residual": PRE,
    "output_norm": (Branch("mixer", False, True), Branch("mlp", False, True)),
    "sandwich_norm": (Branch("mixer", True, True), Branch("mlp", True, True)),
    "scaled_sandwich_norm": (Branch("mixer", True, True), Branch("mlp", True, True)),
    "altup": (Branch("mixer", True, True), Branch("mlp", True, True)),
    "post_norm": (Branch("mixer", False), OnStream(), Branch("mlp", False), OnStream()),
    "pre_norm_residual": (OnStream(), Branch("mixer", False), OnStream(), Branch("mlp", False)),
    "parallel": (Together(PRE, one_norm=True),),
    "parallel_two_norms": (Together(PRE, one_norm=False),),
    "mixer_only": (Branch("mixer"),),
    "mlp_only": (Branch("mlp"),),
    "shared_block": (Branch("mixer"),),
}


def architecture_svg(report: dict) -> str:
    """The report of `measure` -> an SVG document."""
    drawing = Drawing()
    title = f"{short(report['parameters'])} parameters, {len(report['layers'])} layers"
    if report["active_parameters"] != report["parameters"]:
        title += f", {short(report['active_parameters'])} active"
    drawing.text(16, 24, title, bold=True)
    y = _end(
        drawing, 38, f"tokens → embedding {report['vocab_size']:,} × {report['hidden_size']:,}", report["embedding"]
    )
    top = y
    widest = max([report["hidden_size"], *(max(layer["widths"].values(), default=0) for layer in report["layers"])])
    for times, runs in repetitions(list(layer_runs(report["layers"]))):
        y = _runs(drawing, y, times, runs, widest)
    norm = next((word for word in report["head"] if word.endswith("_norm")), None)
    if norm:
        y = _norm_on_stream(drawing, y, norm)
    y = _end(
        drawing,
        y + 8,
        f"head {report['hidden_size']:,} × {report['vocab_size']:,} → logits",
        [word for word in report["head"] if word != norm],
    )
    bottom = y - 20
    drawing.parts.insert(0, f'<path class="zoo-line" stroke-width="2.5" fill="none" d="M{STREAM} {top}V{bottom:g}"/>')
    return drawing.document(WIDTH, int(y) + 4, title)


def _end(drawing: Drawing, y: float, text: str, words: list[str]) -> float:
    height = 32 + (24 if words else 0)
    drawing.box(16, y, WIDTH - 32, height, "end")
    drawing.text(30, y + 20, text, bold=True)
    drawing.badges(30, y + 28, WIDTH - 60, words)
    return y + height


def _runs(drawing: Drawing, y: float, times: int, runs: list, widest: int) -> float:
    """Some runs of layers, inside a dashed frame where they stand there several times."""
    if times == 1:
        for run in runs:
            y = _run(drawing, y, run, widest)
        return y
    first, last = runs[0][0], runs[0][0] + times * (runs[-1][1] - runs[0][0] + 1) - 1
    top = y + 12
    drawing.text(WIDTH - 24, top + 18, f"{times} times, layers {first} to {last}", anchor="end", bold=True)
    y = top + 12
    for run in runs:
        y = _run(drawing, y, run, widest, numbered=False)
    drawing.frame(8, top, WIDTH - 16, y - top + 4)
    return y + 8


def _run(drawing: Drawing, y: float, run: tuple, widest: int, numbered: bool = True) -> float:
    """A layer, or several that are the same, along the residual stream."""
    first, last, layer = run
    count = last - first + 1
    name = f"layer {first}" if count == 1 else f"layers {first} to {last}, {count} × the same"
    if not numbered:
        name = "a layer" if count == 1 else f"{count} × the same layer"
    drawing.text(LEFT, y + 22, name, bold=True)
    drawing.text(LEFT + len(name) * CHARACTER * 1.08 + 14, y + 22, _costs(layer, count), kind="faint")
    y += 32
    beside = named_fields(layer)
    beside += layer["residual"].split(", ")[1:] + {"shortcut": ["experts join after the next layer"]}.get(
        layer["block"], []
    )
    y += drawing.badges(LEFT, y, INNER, beside)
    for piece in TOPOLOGIES[layer["block"]]:
        if isinstance(piece, OnStream):
            y = _norm_on_stream(drawing, y, piece.name)
        elif isinstance(piece, Together):
            y = _together(drawing, y, piece, layer, widest)
        elif layer[piece.part]:
            y = _branch(drawing, y, piece, layer, widest)
    return y + 4


def _costs(layer: dict, count: int) -> str:
    """Parameters and cache of one layer."""
    cache, state = layer["cache_bytes_per_token"], layer["state_bytes"]
    words = [f"{short(layer['parameters'])} parameters{' each' if count > 1 else ''}"]
    words += [f"{short_bytes(cache)} of cache per token"] if cache else []
    words += [f"{short_bytes(state)} of state"] if state else []
    return ", ".join(words)


def _norm_on_stream(drawing: Drawing, y: float, name: str) -> float:
    width = max(52, len(name) * CHARACTER + 12)
    drawing.box(14, y + 6, width, 22, "norm")
    drawing.text(14 + width / 2, y + 21, name, anchor="middle")
    return y + 36


def _branch(drawing: Drawing, y: float, branch: Branch, layer: dict, widest: int) -> float:
    """Residual stream → norm → sub-layer → norm → +."""
    height = PARTS[branch.part](drawing, y, layer, widest)
    middle = y + height / 2
    start = STREAM
    if branch.before:
        drawing.box(NORM_LEFT, middle - 11, NORM_WIDTH, 22, "norm")
        drawing.text(NORM_LEFT + NORM_WIDTH / 2, middle + 4, "norm", anchor="middle")
        drawing.line(f"M{STREAM} {middle:g}H{NORM_LEFT}", (NORM_LEFT, middle, "right"))
        start = NORM_LEFT + NORM_WIDTH
    drawing.line(f"M{start} {middle:g}H{LEFT}", (LEFT, middle, "right"))
    return _join(drawing, y + height, middle, branch.after)


def _join(drawing: Drawing, bottom: float, middle: float, after: bool) -> float:
    """Sub-layer → norm → back to the residual stream, below it."""
    end, back = RIGHT, bottom + 14
    if after:
        drawing.box(RIGHT + 12, middle - 11, 62, 22, "norm")
        drawing.text(RIGHT + 43, middle + 4, "norm", anchor="middle")
        drawing.line(f"M{RIGHT} {middle:g}h12", (RIGHT + 12, middle, "right"))
        end = RIGHT + 74
    drawing.line(f"M{end} {middle:g}H{WIDTH - 28}V{back:g}H{STREAM + 8}", (STREAM + 8, back, "left"))
    drawing.plus(STREAM, back)
    return back + 16


def _together(drawing: Drawing, y: float, piece: Together, layer: dict, widest: int) -> float:
    """Mixer and MLP side by side: both read the residual stream, their sum joins it."""
    middles = []
    for branch in piece.branches:
        height = PARTS[branch.part](drawing, y, layer, widest)
        middles.append(y + height / 2)
        y += height + 10
    places = [sum(middles) / 2] if piece.one_norm else middles
    for place in places:
        drawing.box(NORM_LEFT, place - 11, NORM_WIDTH - 20, 22, "norm")
        drawing.text(NORM_LEFT + (NORM_WIDTH - 20) / 2, place + 4, "norm", anchor="middle")
        drawing.line(f"M{STREAM} {place:g}H{NORM_LEFT}", (NORM_LEFT, place, "right"))
    for middle in middles:
        start = places[0] if piece.one_norm else middle
        path = f"M{NORM_LEFT + NORM_WIDTH - 20} {start:g}h8V{middle:g}H{LEFT}"
        drawing.line(path, (LEFT, middle, "right"))
    drawing.line(f"M{RIGHT} {middles[0]:g}H{WIDTH - 28}V{middles[1]:g}")
    return _join(drawing, y - 10, middles[1], after=False)


def _mixer(drawing: Drawing, y: float, layer: dict, widest: int) -> float:
    """Name and heads, what it projects to, positions, what it sees, what else it has."""
    badges = [word for word in (layer["positions"], _seen(layer["context"]), *layer["features"]) if word]
    lines = in_lines(layer["mixer"], INNER)
    widths = list(layer["widths"].items())
    rows = [dict(widths[start : start + BARS]) for start in range(0, len(widths), BARS)]
    height = 12 + LINE * len(lines) + 22 * len(rows) + Drawing().badges(0, 0, INNER, badges) + 4
    drawing.box(LEFT, y, RIGHT - LEFT, height, "mixer")
    y = _lines(drawing, y, lines)
    for row in rows:
        _bars(drawing, y, row, widest)
        y += 22
    drawing.badges(LEFT + 10, y, INNER, badges)
    return height


def _seen(context: str) -> str:
    return {"full": "sees all", "state": "keeps a state"}.get(context, context)


def _bars(drawing: Drawing, y: float, widths: dict[str, int], widest: int) -> None:
    """Channels as bars, to one scale in the whole picture."""
    room = (INNER - sum((len(f"{name} {width:,}") + 1) * CHARACTER + 14 for name, width in widths.items())) / len(
        widths
    )
    x = LEFT + 10
    for name, width in widths.items():
        text = f"{name} {width:,}"
        drawing.text(x, y + 12, text, kind="faint")
        x += (len(text) + 0.5) * CHARACTER
        size = max(2.0, room * width / widest)
        drawing.bar(x, y + 4, size, 9, "bar")
        x += size + 14


def _mlp(drawing: Drawing, y: float, layer: dict, widest: int) -> float:
    """What it computes; of experts a square for each, filled for those that a token goes to."""
    lines = in_lines(layer["mlp"], INNER)
    experts = layer["experts"]
    height = 14 + LINE * len(lines) + (22 if experts else 0)
    drawing.box(LEFT, y, RIGHT - LEFT, height, "mlp")
    y = _lines(drawing, y, lines)
    if experts:
        _squares(drawing, y + 2, experts)
    return height


def _squares(drawing: Drawing, y: float, experts: dict[str, int]) -> None:
    drawing.text(LEFT + 10, y + 11, "router →", kind="faint")
    x, shown = LEFT + 74, min(experts["routed"], 28)
    chosen = max(1, round(experts["chosen"] * shown / experts["routed"]))
    for index in range(shown):
        on = index % (shown // chosen) == 0 and index // (shown // chosen) < chosen
        drawing.bar(x, y + 2, 8, 10, "on" if on else "off")
        x += 11
    if experts.get("shared"):
        drawing.text(x + 8, y + 11, "and always", kind="faint")
        drawing.bar(x + 84, y + 2, 8, 10, "on")


def _lines(drawing: Drawing, y: float, lines: list[str]) -> float:
    for index, line in enumerate(lines):
        drawing.text(LEFT + 10, y + 20 + LINE * index, line, bold=index == 0)
    return y + 12 + LINE * len(lines)


PARTS: dict[str, Callable] = {"mixer": _mixer, "mlp": _mlp}
