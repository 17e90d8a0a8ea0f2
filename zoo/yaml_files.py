"""YAML that people write: recipes, sweeps, plans of surgery and of merging."""

import re
from pathlib import Path
from typing import Any


def parse_yaml(text: str) -> Any:
    """What the text says; 3e-4 is a number, as people and TRL write it. Raises ValueError, in one line, for what is
    not YAML and for a key that a table has twice."""
    import yaml

    try:
        return yaml.load(text, Loader=loader())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # ValueError: a date that no calendar has.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_table(path: str | Path, error: type[Exception], what: str) -> dict[str, Any]:
    """The table that a file holds, {} of an empty one. Raises `error`, in a sentence, for anything else; `what`: the
    word for such a table ("a recipe")."""
    path = Path(path)
    if not path.is_file():
        raise error(f"{path} is not a file.")
    try:
        said = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as wrong:
        raise error(f"{path} is not a text in UTF-8: {wrong.reason} at byte {wrong.start}.") from None
    except ValueError as wrong:
        raise error(f"{path} is not YAML: {wrong}.") from None
    if not isinstance(said, dict | None):
        raise error(f"{path}: {what} is a table of names and values, not {type(said).__name__}.")
    return said or {}


def loader() -> type:
    """YAML's safe loader, with numbers as people write them and no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    number = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
