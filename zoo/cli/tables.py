"""Tables that stay whole in a pipe and readable in a terminal."""

import sys
from collections.abc import Iterable, Sequence

from description_zoo.foreign_text import printable


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, numeric: tuple[int, ...] = ()
) -> None:
    """Print rows of strings; the columns numbered in `numeric` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numeric else "left", no_wrap=not sys.stdout.isatty())
    for row in rows:
        # Text, since a string in brackets would be taken for markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    # Without a terminal rich assumes 80 columns and would cut.
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)


def short(number: float, base: int = 1000, units: Sequence[str] = ("", "K", "M", "B", "T")) -> str:
    """1234567 -> "1.23M"; base 1024 with units of bytes for memory."""
    index = 0
    while abs(number) >= base and index < len(units) - 1:
        number, index = number / base, index + 1
    return f"{number:.0f}{units[index]}" if index == 0 or number >= 100 else f"{number:.3g}{units[index]}"


def short_bytes(number: float) -> str:
    """4096 -> "4 KiB"."""
    return short(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))
