"""ZooConfig for the page: its own source, translated."""

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from .names import bound_names
from .translate import translated

PACKAGES = Path(__file__).resolve().parents[3]
# library.js does what this does to transformers.
LEFT_OUT = ("layer_type_names",)
WORDS = ("layers", "kinds")
# What asks nothing of torch about ranks.
PLACEMENT = {
    "zoo/training/ranks.py": ("heads_to_split",),
    "zoo/cli/placement.py": (
        "SPLIT", "SPLITS_BIAS", "check_sizes", "cache_parts", "plans_of", "rule_of", "share",
    ),
}  # fmt: skip


def outside() -> set[str]:
    """The names that library.js has in place of Python's libraries."""
    source = Path(__file__).with_name("static").joinpath("library.js").read_text("utf-8")
    names = set(re.findall(r"^export (?:const|function) (\w+)", source, re.MULTILINE))
    for group in re.findall(r"^export const [{\[]([^}\]]*)[}\]] =", source, re.MULTILINE):
        names |= set(re.findall(r"\w+", group))
    return names


def rules() -> dict[str, str]:
    """{file: JavaScript}: the config itself in `rules.js`, what `zoo inspect` says of a layer in `words.js`, how ranks
    share a model in `plans.js`."""
    from transformers.modeling_rope_utils import RotaryEmbeddingConfigMixin

    config = [inspect.getsource(RotaryEmbeddingConfigMixin), "adopt(PreTrainedConfig, RotaryEmbeddingConfigMixin)"]
    config += [(PACKAGES / f"configuration_zoo/{name}.py").read_text("utf-8") for name in modules("configuration_zoo")]
    words = [(PACKAGES / f"description_zoo/{name}.py").read_text("utf-8") for name in WORDS]
    plans = [chosen((PACKAGES / path).read_text("utf-8"), names) for path, names in PLACEMENT.items()]
    names = {name for source in config for name in bound_names(ast.parse(source).body)}
    return {
        "rules.js": translated(config, {"library.js": outside()}),
        "words.js": translated(words, {"library.js": outside(), "rules.js": names}),
        "plans.js": translated(plans, {"library.js": outside()}),
    }


def modules(name: str, open_ones: tuple[str, ...] = ()) -> list[str]:
    """A module of configuration_zoo behind those that it imports, each once."""
    tree = ast.parse((PACKAGES / f"configuration_zoo/{name}.py").read_text("utf-8"))
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    found = [
        other for one in imported if one not in (*open_ones, *LEFT_OUT) for other in modules(one, (*open_ones, name))
    ]
    return list(dict.fromkeys([*found, name]))


def chosen(source: str, names: Iterable[str]) -> str:
    """The statements of a module that bind some names, without the imports inside of functions."""
    return "\n".join(ast.unparse(node) for node in ast.parse(source).body if bound_names([node]) & {*names})
