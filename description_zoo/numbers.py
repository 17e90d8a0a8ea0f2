"""Numbers in few characters."""

from collections.abc import Sequence


def short(number: float, base: int = 1000, units: Sequence[str] = ("", "K", "M", "B", "T")) -> str:
    """1234567 -> "1.23M"; base 1024 with units of bytes for memory."""
    index = 0
    while abs(number) >= base and index < len(units) - 1:
        number, index = number / base, index + 1
    return f"{number:.0f}{units[index]}" if index == 0 or number >= 100 else f"{number:.3g}{units[index]}"


def short_bytes(number: float) -> str:
    """4096 -> "4 KiB"."""
    return short(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))
