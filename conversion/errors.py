"""The one error of this package, and failures as a person reads them: a sentence, the traceback only when asked for."""

import os
import sys
import traceback

from huggingface_hub.errors import StrictDataclassError

from description_zoo.foreign_text import on_one_line

# What transformers' configuration classes raise for a config.json that they do not accept.
BAD_CONFIG = (StrictDataclassError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class ConversionError(ValueError):
    """The source or the target is wrong; the message names what, and says what is allowed or what to do."""


def innermost(error: BaseException) -> BaseException:
    """What a validator wrapped; any other error itself."""
    while type(error).__module__.startswith("huggingface_hub.errors") and error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The sentence inside an error, without the wrapping of validators."""
    return " ".join(str(innermost(error)).split()).removesuffix(".") + "."


def sentence(error: BaseException) -> str:
    """The innermost message of a validation error, else the message itself, on one line, without what only a debugger
    reads."""
    error = innermost(error)
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    message = message.partition("\nException raised from")[0].replace("trust_remote_code=True", "--trust-remote-code")
    return on_one_line(message) or type(error).__name__


def is_expected(error: BaseException) -> bool:
    """Whether the message is meant for a person: a bad argument, file or config rather than a defect of zoo."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return "huggingface_hub.StrictDataclassError" in names or isinstance(error, (OSError, ValueError))


def report(error: Exception, program: str = "zoo") -> int:
    """Print what went wrong; -> the exit code."""
    usage = getattr(error, "format_message", None)
    if os.environ.get("ZOO_DEBUG"):
        traceback.print_exception(error)
    elif usage is not None:
        if message := usage().rstrip("."):
            context = getattr(error, "ctx", None)
            path = context.command_path if context else program
            print(f"{program}: {message} ({path} --help shows what there is)", file=sys.stderr)
    elif is_expected(error):
        print(f"{program}: {sentence(error)}", file=sys.stderr)
    else:
        kind = type(error).__name__
        print(f"{program}: unexpected {kind}: {sentence(error)} (ZOO_DEBUG=1 shows the traceback)", file=sys.stderr)
    return 1 if usage is None else 2
