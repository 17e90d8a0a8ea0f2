"""The one error of this package: a sentence for the person who ran the conversion."""


class ConversionError(ValueError):
    """The source or the target is wrong; the message names what, and says what is allowed or what to do."""


def one_line(error: BaseException) -> str:
    """The sentence inside an error, without the wrapping of validators."""
    while type(error).__module__.startswith("huggingface_hub.errors") and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).removesuffix(".") + "."
