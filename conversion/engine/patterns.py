"""Tensor names with placeholders: `model.layers.{i}.self_attn.q_proj.{w}`.

`{i}` is the layer number, any other single letter a number too; `{w}` is `weight` or `bias`; `{a|b}` is one of the
words it lists; `{*}` is any rest of a name, dots included. A placeholder of one letter in both patterns of a rule has
the same value on both sides.
"""

import re

_SHORT = {"w": "weight|bias"}


class Pattern:
    """A name with placeholders; `match` reads their values out of a name, `format` writes them into one."""

    def __init__(self, text: str):
        self.text = text
        pieces = re.split(r"\{([^{}]+)\}", text)
        self._literals, self.placeholders = pieces[::2], [_SHORT.get(name, name) for name in pieces[1::2]]
        self._regex = re.compile(self._expression())

    def _expression(self) -> str:
        expression, seen = re.escape(self._literals[0]), {}
        for name, literal in zip(self.placeholders, self._literals[1:], strict=True):
            if name in seen:
                expression += f"(?P={seen[name]})"
            else:
                seen[name] = f"p{len(seen)}"
                expression += f"(?P<{seen[name]}>{_value_expression(name)})"
            expression += re.escape(literal)
        self._keys = [(name, _is_number(name)) for name in seen]
        return expression

    def match(self, name: str) -> dict[str, int | str] | None:
        """The placeholders' values in `name`, numbers as int; None when the name is another one."""
        # Most names fail on the literal ends, long before the expression would see it.
        if not (name.startswith(self._literals[0]) and name.endswith(self._literals[-1])):
            return None
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        texts = found.groups()
        return {key: int(text) if number else text for (key, number), text in zip(self._keys, texts, strict=True)}

    def beginning(self, name: str) -> str:
        """A name that matches, up to where `{*}` takes any rest."""
        rest = self.match(name).get("*", "")
        return name[: name.rindex(rest)] if rest else name

    def format(self, values: dict[str, int | str]) -> str:
        """The name that has these values."""
        parts = [self._literals[0]]
        for name, literal in zip(self.placeholders, self._literals[1:], strict=True):
            parts += [str(values[name]), literal]
        return "".join(parts)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _is_number(placeholder: str) -> bool:
    return len(placeholder) == 1 and placeholder.isalpha()


def _value_expression(placeholder: str) -> str:
    if placeholder == "*":
        return ".+"
    if _is_number(placeholder):
        return "0|[1-9][0-9]*"
    if "|" in placeholder:
        return "|".join(re.escape(word) for word in placeholder.split("|"))
    raise ValueError(f"unknown placeholder {{{placeholder}}}: use one letter, {{a|b}} or {{*}}")


def natural_key(name: str) -> tuple:
    """Sort key that puts layer 2 before layer 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name))
