"""Failures as a person reads them: one sentence on stderr, the traceback only when asked for."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the person at the keyboard can put right; the message says how."""


def sentence(error: BaseException) -> str:
    """The innermost message of a validation error, else the message itself, on one line, without what only a debugger
    reads."""
    from description_zoo.foreign_text import on_one_line

    while type(error).__module__.startswith("huggingface_hub.errors") and error.__cause__ is not None:
        error = error.__cause__
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    message = message.partition("\nException raised from")[0].replace("trust_remote_code=True", "--trust-remote-code")
    return on_one_line(message) or type(error).__name__


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Inside this block a library reads what a folder brings, and whatever it raises is the folder's: UserError says so
    and names `what`. A lack of memory is nobody's file."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ in ("ConversionError", "OutOfMemoryError"):
            raise
        reason = sentence(error).removesuffix(".")
        raise UserError(f"{what} cannot be used ({type(error).__name__}: {reason}).") from error


def is_expected(error: BaseException) -> bool:
    """Whether the message is meant for a person: a bad argument, file or config rather than a defect of zoo."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    expected = {"zoo.UserError", "conversion.ConversionError", "huggingface_hub.StrictDataclassError"}
    return bool(names & expected) or isinstance(error, (OSError, ValueError))


def report(error: Exception) -> int:
    """Print what went wrong; -> the exit code."""
    usage = getattr(error, "format_message", None)
    if os.environ.get("ZOO_DEBUG"):
        traceback.print_exception(error)
    elif usage is not None:
        if message := usage().rstrip("."):
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "zoo"
            print(f"zoo: {message} ({path} --help shows what there is)", file=sys.stderr)
    elif is_expected(error):
        print(f"zoo: {sentence(error)}", file=sys.stderr)
    else:
        kind = type(error).__name__
        print(f"zoo: unexpected {kind}: {sentence(error)} (ZOO_DEBUG=1 shows the traceback)", file=sys.stderr)
    return 1 if usage is None else 2
