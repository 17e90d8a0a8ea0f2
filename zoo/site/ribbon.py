"""A model in one small picture: a column for each layer, how it mixes tokens above what it does with channels."""

from html import escape
from typing import Any

WIDTH, TOP, BOTTOM, GAP = 320, 28, 14, 2
# Middle tones, which stand on a light page and on a dark one.
COLOURS = {
    "full": "#4c8fd6",
    "window": "#8fbfe8",
    "latent": "#8a63d2",
    "indexed": "#c264b4",
    "state": "#e08e2b",
    "none": "none",
    "dense": "#4aa765",
    "experts": "#0f8578",
}
LEGEND = {
    "full": "attention to all tokens",
    "window": "attention in a window, a chunk or a pattern",
    "latent": "latent attention",
    "indexed": "attention to keys that an indexer chooses",
    "state": "recurrence or convolution",
    "dense": "MLP",
    "experts": "experts",
}


def mixer_kind(layer: dict[str, Any]) -> str:
    """Which colour the mixer of a layer of `measure` has."""
    if not layer["mixer"]:
        return "none"
    if layer["layer_type"] == "indexed_attention":
        return "indexed"
    if layer["context"] == "state":
        return "state"
    if layer["context"] not in ("full", ""):
        return "window"
    return "latent" if layer["mixer"].startswith("latent") else "full"


def mlp_kind(layer: dict[str, Any]) -> str:
    """Which colour what follows the mixer has."""
    if not layer["mlp"]:
        return "none"
    return "experts" if layer["experts"] else "dense"


def ribbon(name: str, pattern: str, layers: list[dict[str, Any]]) -> str:
    """The layers of `measure` -> an SVG document, always of one size; what does not see all is lower."""
    height, step = TOP + BOTTOM + GAP, WIDTH / len(layers)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(name)}: {escape(pattern)}</title>",
    ]
    width = max(step - 1, step * 0.7)
    for index, layer in enumerate(layers):
        mixer, mlp = mixer_kind(layer), mlp_kind(layer)
        tall = TOP if mixer in ("full", "latent") else TOP * 0.6
        x = index * step
        parts += [
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{h:.2f}" fill="{COLOURS[kind]}"/>'
            for kind, y, h in ((mixer, TOP - tall, tall), (mlp, TOP + GAP, BOTTOM))
            if kind != "none"
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def legend() -> str:
    """What the colours say, as HTML."""
    items = (f'<li><span style="background:{COLOURS[kind]}"></span>{said}</li>' for kind, said in LEGEND.items())
    return f'<ul class="zoo-legend">{"".join(items)}</ul>'
