"""Numbers as people type them."""

import re

from .errors import UserError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def amount(text: str, option: str) -> float:
    """ "10B" -> 1e10; raises UserError for what is no number above 0 with K, M, B or T."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmbt]?)", text.strip().replace(",", "").lower())
    if found is None or not float(found[1]):
        raise UserError(f"{option} {text} is not a number such as 300M, 10B or 1.5T.")
    return float(found[1]) * UNITS[found[2]]


def one_of(name: str, option: str, known: dict) -> str:
    """A name of a table, whatever its case; raises UserError for any other."""
    if name.lower() not in known:
        raise UserError(f"{option} {name} is not one of {', '.join(known)}.")
    return name.lower()
