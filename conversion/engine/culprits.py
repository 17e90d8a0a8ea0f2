"""Which key of a config.json an error is about, found by leaving out one at a time: the error itself need not know."""

import re
from collections.abc import Callable
from typing import Any


def with_culprit(sentence: str, keys: dict[str, Any], complaint: Callable[[dict[str, Any]], str | None]) -> str:
    """`sentence` with the key it is about and its value, unless it gives both already.

    `complaint(keys)` is what an attempt with these keys is answered, None where it succeeds. A key with the value the
    sentence gives comes first, if the answer without it is another; then one without which the attempt succeeds.
    """
    if any(_gives(sentence, key, value) for key, value in keys.items()):
        return sentence
    answers = {key: complaint({name: keys[name] for name in keys if name != key}) for key in keys}
    told = [key for key, answer in answers.items() if answer != sentence and f"={keys[key]!r} " in sentence]
    accepted = [key for key, answer in answers.items() if answer is None]
    other = [key for key, answer in answers.items() if answer != sentence]
    named = any(_names(sentence, key) for key in keys)
    culprit = next(iter([*told, *accepted, *([] if named else other)]), None)
    if culprit is None or _names(sentence, culprit):
        return sentence
    return f"{culprit}={keys[culprit]!r} cannot be used: {sentence}"


def _gives(sentence: str, key: str, value: Any) -> bool:
    return re.search(rf"(?<!\w){re.escape(f'{key}={value!r}')}(?!\w)", sentence) is not None


def _names(sentence: str, key: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", sentence) is not None
