"""Pieces of a drawing that reads on a light and on a dark page: it has a ground of its own and follows the reader's
preference."""

from html import escape
from textwrap import wrap

# One character of the drawing's font, about, at 12 pixels.
CHARACTER = 7.0
STYLE = """
.zoo-ground{fill:#ffffff;stroke:#d0d7de}.zoo-text{fill:#1f2328}.zoo-faint{fill:#59636e}.zoo-line{stroke:#59636e}
.zoo-frame{stroke:#8c959f}.zoo-mixer{fill:#dbe9f9;stroke:#54a0e8}.zoo-mlp{fill:#ddf3e0;stroke:#4aa765}
.zoo-norm{fill:#fff3cd;stroke:#c99a12}.zoo-end{fill:#eef0f3;stroke:#8c959f}.zoo-badge{fill:#ffffff;stroke:#8c959f}
.zoo-bar{fill:#54a0e8}.zoo-on{fill:#4aa765}.zoo-off{fill:#b8e0c2}
@media (prefers-color-scheme:dark){
.zoo-ground{fill:#0d1117;stroke:#3d444d}.zoo-text{fill:#f0f6fc}.zoo-faint{fill:#9198a1}.zoo-line{stroke:#9198a1}
.zoo-frame{stroke:#656c76}.zoo-mixer{fill:#12304f;stroke:#3f87cf}.zoo-mlp{fill:#143d22;stroke:#3f9158}
.zoo-norm{fill:#463809;stroke:#b38a13}.zoo-end{fill:#212830;stroke:#656c76}.zoo-badge{fill:#0d1117;stroke:#656c76}
.zoo-bar{fill:#3f87cf}.zoo-on{fill:#3f9158}.zoo-off{fill:#1f5a33}}
"""
FONT = "ui-sans-serif, -apple-system, Helvetica, Arial, sans-serif"


class Drawing:
    """SVG elements in the order in which they are drawn."""

    def __init__(self):
        self.parts: list[str] = []

    def document(self, width: int, height: int, title: str) -> str:
        """All of them on their ground."""
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}" font-size="12">'
        ground = f'<rect class="zoo-ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
        lines = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE.strip()}</style>", ground, *self.parts]
        return "\n".join([*lines, "</svg>"]) + "\n"

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect class="zoo-{kind}" {size} rx="5"/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect class="zoo-{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>')

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect class="zoo-frame" {size} rx="8" fill="none" stroke-dasharray="5 4"/>')

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", kind: str = "text", bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self.parts.append(f'<text class="zoo-{kind}" {place}{weight}>{escape(text)}</text>')

    def line(self, path: str, arrow: tuple[float, float, str] | None = None) -> None:
        """A path; `arrow`: where it ends, and whether it points "down", "right" or "left" there."""
        if arrow is not None:
            x, y, way = arrow
            heads = {"down": "-4 -5l4 5l4 -5", "right": "-5 -4l5 4l-5 4", "left": "5 -4l-5 4l5 4"}
            path += f"M{x:g} {y:g}m{heads[way]}"
        self.parts.append(f'<path class="zoo-line" fill="none" stroke-width="1.3" d="{path}"/>')

    def plus(self, x: float, y: float) -> None:
        """A sum on the residual stream."""
        circle = f'<circle class="zoo-ground" style="stroke:#8c959f" cx="{x:g}" cy="{y:g}" r="8"/>'
        self.parts.append(circle)
        self.line(f"M{x - 4:g} {y:g}h8M{x:g} {y - 4:g}v8")

    def badges(self, x: float, y: float, width: float, words: list[str]) -> float:
        """Words in a row of pills, a new row where one is full; the height that they take."""
        across, down = 0.0, 0
        for word in words:
            size = len(word) * CHARACTER + 14
            if across and across + size > width:
                across, down = 0.0, down + 24
            self.parts.append(
                f'<rect class="zoo-badge" x="{x + across:g}" y="{y + down:g}" width="{size:g}" height="20" rx="10"/>'
            )
            self.text(x + across + size / 2, y + down + 14, word, anchor="middle")
            across += size + 6
        return down + 24 if words else 0


def in_lines(text: str, width: float) -> list[str]:
    """A text in lines that are so many pixels wide at most."""
    return wrap(text, int(width / CHARACTER), break_on_hyphens=False) or [""]
