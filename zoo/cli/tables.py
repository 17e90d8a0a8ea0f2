"""Tables that stay whole in a pipe and readable in a terminal."""

import sys
from collections.abc import Iterable, Sequence

from description_zoo.foreign_text import printable
from description_zoo.numbers import short, short_bytes

__all__ = ["print_table", "short", "short_bytes"]


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
