"""Failures of the command line that no other package has a name for."""

from collections.abc import Iterator
from contextlib import contextmanager

from conversion.errors import sentence


class UserError(ValueError):
    """Something the person at the keyboard can put right; the message says how."""


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Inside this block a library reads what a folder brings, and whatever it raises is the folder's: UserError says so
    and names `what`. A lack of memory is not the folder's fault."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ in ("ConversionError", "OutOfMemoryError"):
            raise
        reason = sentence(error).removesuffix(".")
        raise UserError(f"{what} cannot be used ({type(error).__name__}: {reason}).") from error
