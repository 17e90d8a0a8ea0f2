"""ZooConfig for the page: its own source, translated."""

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from .names import bound_names
from .translate import translated

PACKAGES = Path(__file__).resolve().parents[3]
# In the order of their imports. Left out: presets, which are data, and what splits a model over devices or ships it.
MODULES = (
    "vocabulary", "other_words", "field_kinds", "field_settings", "field_needs", "fields_checks", "linear_needs",
    "field_words", "fields_model", "fields_attention", "fields_latent", "fields_linear", "first_layers",
    "fields_per_layer", "fields_shared_blocks", "fields_position", "fields_norm", "fields_gated_norm",
    "fields_hyper_connections", "fields_kv_sharing", "fields_value_residual", "fields_per_layer_input",
    "fields_experts", "fields_mlp",
    "fields_multi_token", "fields_multipliers", "fields_precision", "fields_training", "layer_mixers",
    "parallel_plans", "rope_keys", "version", "config_file", "configuration_zoo",
)  # fmt: skip
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
    config += [(PACKAGES / f"configuration_zoo/{name}.py").read_text("utf-8") for name in MODULES]
    words = [(PACKAGES / f"description_zoo/{name}.py").read_text("utf-8") for name in WORDS]
    plans = [chosen((PACKAGES / path).read_text("utf-8"), names) for path, names in PLACEMENT.items()]
    names = {name for source in config for name in bound_names(ast.parse(source).body)}
    return {
        "rules.js": translated(config, {"library.js": outside()}),
        "words.js": translated(words, {"library.js": outside(), "rules.js": names}),
        "plans.js": translated(plans, {"library.js": outside()}),
    }


def chosen(source: str, names: Iterable[str]) -> str:
    """The statements of a module that bind some names, without the imports inside of functions."""
    return "\n".join(ast.unparse(node) for node in ast.parse(source).body if bound_names([node]) & {*names})
