"""Plots of the guides: maps of weights and curves, in the style of the pictures of models."""

from collections.abc import Sequence

from description_zoo.svg import CHARACTER, Drawing

# Read on a light and on a dark ground.
COLOURS = ("#3f87cf", "#4aa765", "#c99a12", "#c9605f", "#8e6fc9", "#5aa7a7")
CELL, GAP, TOP = 9, 28, 44


def maps(
    title: str,
    panels: Sequence[tuple[str, Sequence[Sequence[float]]]],
    rows: str,
    columns: str,
    by_row: bool = True,
) -> str:
    """Matrices side by side, a square for each entry, darker for more: of the largest in its row, or in the matrix.
    `rows` and `columns` say what these are."""
    drawing, x, tallest = Drawing(), 44.0, max(len(values) for _, values in panels)
    drawing.text(16, 24, title, bold=True)
    for name, values in panels:
        drawing.text(x, TOP + 8, name)
        largest = max(max(shares) for shares in values) or 1.0
        for row, shares in enumerate(values):
            most = (max(shares) or 1.0) if by_row else largest
            for column, share in enumerate(shares):
                place = f'x="{x + CELL * column:g}" y="{TOP + 16 + CELL * row}" width="{CELL - 1}" height="{CELL - 1}"'
                shown = 0.12 + 0.88 * share / most if share > 1e-6 else 0
                drawing.parts.append(f'<rect class="zoo-bar" {place} fill-opacity="{shown:.2f}"/>')
        width = max(CELL * len(values[0]), len(name) * CHARACTER)
        drawing.line(f"M{x - 3:g} {TOP + 14}V{TOP + 18 + CELL * len(values)}H{x + CELL * len(values[0]) + 2:g}")
        x += width + GAP
    bottom = TOP + 16 + CELL * tallest
    drawing.text(44, bottom + 20, f"→ {columns}", kind="faint")
    drawing.text(16, TOP + 30, "↓", kind="faint")
    drawing.text(16, bottom + 38, f"↓ {rows}", kind="faint")
    return drawing.document(int(max(x, 420)), bottom + 52, title)


def curves(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    across: str,
    up: str,
    ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """Lines through points, each with its name beside its end; `ticks`: values of the upward axis and their words."""
    drawing, left, top, width, height = Drawing(), 76, 44, 420, 230
    points = [point for _, line in series for point in line]
    lowest, highest = (pick(value for _, value in points) for pick in (min, max))
    first, last = (pick(place for place, _ in points) for pick in (min, max))

    def at(point: tuple[float, float]) -> str:
        x = left + width * (point[0] - first) / ((last - first) or 1)
        y = top + height * (highest - point[1]) / ((highest - lowest) or 1)
        return f"{x:.1f} {y:.1f}"

    drawing.text(16, 24, title, bold=True)
    drawing.line(f"M{left} {top}V{top + height}H{left + width}")
    for value, words in ticks or ((lowest, f"{lowest:.3g}"), (highest, f"{highest:.3g}")):
        y = float(at((first, value)).split()[1])
        drawing.text(left - 8, y + 4, words, anchor="end", kind="faint")
        drawing.line(f"M{left - 4} {y:g}h4")
    for index, (name, line) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        path = "L".join(at(point) for point in line)
        drawing.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 14 + 20 * index
        drawing.parts.append(
            f'<path d="M{left + width + 16} {y - 4}h18" stroke="{colour}" stroke-width="2" fill="none"/>'
        )
        drawing.text(left + width + 40, y, name)
    drawing.text(left, top + height + 18, f"{first:g}", kind="faint")
    drawing.text(left + width, top + height + 18, f"{last:g}", anchor="end", kind="faint")
    drawing.text(left + width / 2, top + height + 34, across, anchor="middle", kind="faint")
    drawing.text(left, top - 8, up, kind="faint")
    longest = max(len(name) for name, _ in series)
    return drawing.document(int(left + width + 56 + longest * CHARACTER), top + height + 48, title)


def head_groups(title: str, rows: Sequence[tuple[str, int, int]]) -> str:
    """(name, query heads, key-value heads) -> each row's heads, and which keys and values a query head reads."""
    drawing, y = Drawing(), 52.0
    drawing.text(16, 24, title, bold=True)
    for name, heads, keys in rows:
        drawing.text(16, y + 2, name, bold=True)
        step = 560 / heads
        drawing.text(16, y + 26, "queries", kind="faint")
        drawing.text(16, y + 74, "keys, values", kind="faint")
        for head in range(heads):
            x = 110 + step * head
            drawing.box(x, y + 14, step - 6, 18, "mixer")
            key = head * keys // heads
            middle = 110 + step * (key + 0.5) * heads / keys - 3
            drawing.line(f"M{x + step / 2 - 3:g} {y + 32:g}L{middle:g} {y + 60:g}")
        for key in range(keys):
            middle = 110 + step * (key + 0.5) * heads / keys - 3
            drawing.box(middle - step / 2 + 3, y + 60, step - 6, 18, "norm")
        y += 104
    return drawing.document(690, int(y) - 6, title)
