"""Text from other people's files, made safe for a terminal, a sentence or a card."""

import re
import unicodedata

# As much of one message as a person reads.
LONGEST = 1500
_SLUG = re.compile(r"[A-Za-z0-9][\w.+/-]{0,127}")


def printable(text: object) -> str:
    """`text` with control, format and lone surrogate characters spelled out (`\\x1b`), so that no terminal acts on
    them; line ends and tabs stay."""
    return "".join(character if _is_shown(character) else _spelled(character) for character in str(text))


def on_one_line(text: object, longest: int = LONGEST) -> str:
    """`printable` text without line breaks; the middle of what is too long gives way to an ellipsis."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= longest else f"{line[: longest - 300]} ... {line[-295:]}"


def code_span(text: object) -> str:
    """Text between backticks in Markdown: one line, no markup, safe in a cell of a table."""
    line = on_one_line(text, 400).replace("`", "'").replace("|", "\\|")
    return f"`{line.replace('<', '‹').replace('>', '›')}`"


def is_slug(value: object) -> bool:
    """Whether a value is a plain name such as a licence or a repository has: `apache-2.0`, `owner/name`."""
    return isinstance(value, str) and _SLUG.fullmatch(value) is not None


def _is_shown(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Cf", "Zl", "Zp")


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
