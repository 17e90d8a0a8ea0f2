"""The one error of this package: a sentence for the person who ran the conversion."""


class ConversionError(ValueError):
    """The source or the target is wrong; the message names what, and says what is allowed or what to do."""
