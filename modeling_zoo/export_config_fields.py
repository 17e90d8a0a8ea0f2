"""Which fields of the config a folder carries, with which values, and how each is written. Never shipped.

A field is free where it is a size or is read at every run; it has one value where it chooses a concept that differs
from the default; everything else is left out and answers with the value it stands at.
"""

import ast
import textwrap
from contextlib import suppress
from copy import copy
from dataclasses import Field, dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig, vocabulary
from configuration_zoo.config_file import default_of
from configuration_zoo.field_kinds import Choice, Flag, Items, Number, Record, Settings
from configuration_zoo.field_needs import is_read
from configuration_zoo.field_settings import described, settings_of, spread
from configuration_zoo.vocabulary import CHUNKED, LINEAR, SLIDING

from .export_config_text import Text
from .export_config_worlds import Open, Present

# Read at every run, or by tools: the code of a folder serves all their values.
RUN_TIME = {
    "rope_parameters", "source_config", "source_extras", "surgery", "use_cache", "initializer_range",
    "suppressed_token_ids",
    "pad_token_id", "bos_token_id", "eos_token_id", "loss_chunk_size", "output_z_loss_coef", "indexer_loss_coef",
    "indexer.warmup", "router.jitter_noise", "tie_word_embeddings", "initializer.embedding_range", "initializer.cutoff",
}  # fmt: skip
ROUTER_RUN_TIME = {"output_router_logits", "router_aux_loss_coef", "router_z_loss_coef"}
# Words of which the code serves all.
FREE_WORDS = {"hidden_act"}
NEUTRAL = (None, False, 0, 1)
WIDTH = 120


@dataclass
class Plan:
    """What is decided of every field: by name, keys of dicts of settings as `precision.norm`."""

    # Field -> its one value, Open, or Present; what is neither is a list with one entry for each layer.
    statuses: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, list] = field(default_factory=dict)
    # The fields that a folder's class has, in the package's order.
    carried: list[str] = field(default_factory=list)
    # Field -> its one value: of all that have one, and of those among them that a config.json of this model names.
    left: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    # Other fields that a config.json of this model names.
    written: list[str] = field(default_factory=list)
    groups: dict[str, tuple] = field(default_factory=dict)
    # What a number instead of a list of layer_types calls the layers between.
    slides: str = SLIDING


def planned(config: ZooConfig, facts: set[str]) -> Plan:
    """What becomes of each field of a config."""
    plan, theirs = Plan(), PreTrainedConfig.__dataclass_fields__
    others = {LINEAR: config.linear_attention_type, CHUNKED: config.attention_chunk_size}
    plan.slides = next((word for word, value in others.items() if value is not None), SLIDING)
    said = spread(config.to_diff_dict(), settings_of(type(config)))
    plan.groups = {name: tuple(kind.keys) for name, kind in settings_of(type(config)).items()}
    for name, one in described(type(config)).items():
        if name in theirs:
            continue
        value, kind = getattr(config, name), one.metadata.get("kind")
        if isinstance(kind, Items) and kind.per_layer and isinstance(value, list):
            plan.lists[name] = value
            plan.carried.append(name)
        elif name == "num_hidden_layers" or is_free(config, name, one, value, facts):
            plan.statuses[name] = Present() if is_present(name, one, value) else Open
            plan.carried.append(name)
        else:
            plan.statuses[name] = plan.left[name] = value
            if said.get(name) is not None:
                plan.said[name] = value
        if name in plan.carried and said.get(name) is not None:
            plan.written.append(name)
    for group, keys in plan.groups.items():
        if not any(f"{group}.{key}" in plan.carried for key in keys):
            # One value as a whole: a dict.
            plan.left[group] = {key: plan.left.pop(f"{group}.{key}") for key in keys}
    return plan


def is_run_time(config: ZooConfig, name: str, one: Field, value: Any) -> bool:
    if name in ROUTER_RUN_TIME:
        return "sparse" in config.mlp_layer_types
    if name == "rope_parameters":
        return True
    if name == "router.jitter_noise":
        return bool(value)
    if name.startswith(("indexer", "initializer.")):
        return value is not None and name in RUN_TIME
    named = name in RUN_TIME or name.endswith("dropout")
    return named and (one.metadata.get("needs") is None or is_read(config, name))


def is_free(config: ZooConfig, name: str, one: Field, value: Any, facts: set[str]) -> bool:
    if is_run_time(config, name, one, value):
        return True
    if name in FREE_WORDS and name not in facts and value is not None:
        return is_read(config, name)
    if value is None or isinstance(value, bool | str):
        return False
    if not value or ("." in name and is_constant(config, name, value)):
        return False
    return not (value in NEUTRAL and value == one.default)


def is_constant(config: ZooConfig, name: str, value: Any) -> bool:
    """Whether a number of a dict of settings is derived, and the same in a model of other sizes."""
    view = config.outside_layers()
    for other in ({"norm_eps": 2 * view.norm_eps}, {"hidden_size": 2 * view.hidden_size}):
        derived = copy(view)
        vars(derived).update(other | without(derived, name))
        with suppress(Exception):
            derived._resolve()
        if getattr(derived, name) != value:
            return False
    return True


def without(config: ZooConfig, name: str) -> dict[str, Any]:
    """What the field or the dict of settings holds where `name` is left out."""
    group, _, key = name.partition(".")
    return {group: {**getattr(config, group), key: None} if key else None}


def is_present(name: str, one: Field, value: Any) -> bool:
    """Whether a free field is a number that stays one."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and bool(value)
    return number and name not in RUN_TIME | ROUTER_RUN_TIME and not name.endswith("dropout")


# -- how they are written ----------------------------------------------------------------------------------------

CONSTRUCTORS = {
    Number(whole=True, above=0, most=2**24): "size",
    Number(whole=True, above=0, most=4096): "depth",
    Number(whole=True, above=0, most=2**31 - 1): "length",
    Number(whole=True, least=0, most=2**24): "count",
    Number(above=0): "positive",
    Number(least=0): "non_negative",
    Number(nonzero=True): "factor",
    Number(least=0, below=1): "probability",
}


def kind_text(kind: Any) -> str:
    if isinstance(kind, Number):
        given = {
            name: value for name, value in vars(kind).items() if value != Number.__dataclass_fields__[name].default
        }
        return f"Number({', '.join(f'{name}={value!r}' for name, value in given.items())})"
    if isinstance(kind, Choice):
        known = {words: name for name, words in vars(vocabulary).items() if isinstance(words, tuple)}
        return f"Choice({known.get(kind.names) or quoted(kind.names)})"
    if isinstance(kind, Items):
        return f"Items({kind_text(kind.entry)}" + (f", count={kind.count})" if kind.count else ")")
    return f"{type(kind).__name__}()"


def quoted(value: Any) -> str:
    """The literal as the formatter writes it."""
    return ast.unparse(ast.parse(repr(value))).replace("'", '"') if not isinstance(value, str) else '"' + value + '"'


def field_text(plan: Plan, name: str, one: Field) -> str:
    """What stands behind the `=` of a field."""
    kind, default = one.metadata.get("kind"), default_of(one)
    if name in plan.lists:
        words = [word for word in dict.fromkeys(plan.lists[name]) if word is not None]
        if isinstance(kind.entry, Number):
            return f"setting(Items({kind_text(kind.entry)}, per_layer=True))"
        given = f", default={quoted(default)}" if default in words else ""
        period = tuple(plan.slides if word == SLIDING else word for word in getattr(kind, "period", ()))
        if len(words) > 1 and period and {*period} <= {*words}:
            given += f", period={quoted(period)}"
        return f"per_layer({', '.join(quoted(word) for word in words)}{given})"
    if kind is None or isinstance(kind, Flag | Record):
        return quoted(default)
    given = "" if default is None else quoted(default)
    if kind in CONSTRUCTORS:
        return f"{CONSTRUCTORS[kind]}({given})"
    return f"setting({kind_text(kind)}{', ' if given else ''}{given})"


def key_text(plan: Plan, name: str, one: Field) -> str:
    """As `field_text`, for a key: it has no annotation to say its type."""
    if isinstance(one.metadata["kind"], Flag):
        return f"setting(Flag(), {quoted(default_of(one))})"
    return field_text(plan, name, one)


class Declarations:
    """The fields of a group of the package, with the comments above them."""

    def __init__(self, text: Text, tree: ast.ClassDef):
        self.text, self.blocks, comments = text, [], []
        for stmt in tree.body:
            if not isinstance(stmt, ast.AnnAssign):
                continue
            above = text.comments(stmt, 0)
            if above or not self.blocks:
                comments = above
                self.blocks.append((comments, []))
            self.blocks[-1][1].append((stmt.target.id, " ".join(text.segment(stmt.annotation).split())))

    def lines(self, plan: Plan, every: dict[str, Field], fields: dict[str, Field]) -> list[str]:
        found = []
        for comments, names in self.blocks:
            rows = []
            for name, annotation in names:
                if isinstance(fields[name].metadata.get("kind"), Settings):
                    rows += self.settings_lines(plan, name, annotation, every)
                elif name in plan.carried:
                    rows += comment_lines(fields[name], 4) if not comments else []
                    rows += wrapped(f"    {name}: {annotation} = ", field_text(plan, name, fields[name]))
            found += [*comments, *rows] if rows else []
        return found

    def settings_lines(self, plan: Plan, group: str, annotation: str, every: dict[str, Field]) -> list[str]:
        keys = [name for name in every if name.startswith(f"{group}.")]
        carried = [name for name in keys if name in plan.carried]
        if not carried:
            return []
        found = [f"    {group}: {annotation} = settings(", f'        "{group}",']
        for name in carried:
            key = name.partition(".")[2]
            found += comment_lines(every[name], 8)
            found += wrapped(f"        {key}=", key_text(plan, name, every[name]), ",")
        return [*found, "    )"]


def comment_lines(one: Field, margin: int) -> list[str]:
    """What a field means, and where it is from if that takes no further line."""
    begin = " " * margin + "# "

    def lines(text: str) -> list[str]:
        return textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=begin, break_on_hyphens=False)

    meaning, source = one.metadata.get("meaning", ""), one.metadata.get("source", "transformers")
    both = lines(f"{meaning} ({source}.)")
    return both if source not in ("transformers", "own to zoo") and len(both) == len(lines(meaning)) else lines(meaning)


def wrapped(head: str, text: str, tail: str = "") -> list[str]:
    """`head text` on one line, or with the entries of its call on lines of their own."""
    if len(head + text + tail) <= WIDTH:
        return [head + text + tail]
    margin = " " * (len(head) - len(head.lstrip()))
    name, _, inside = text.partition("(")
    inside = inside[:-1]
    if len(f"{margin}    {inside}") <= WIDTH:
        return [f"{head}{name}(", f"{margin}    {inside}", f"{margin}){tail}"]
    call = ast.parse(text).body[0].value
    found = [f"{head}{name}("]
    for argument in call.args:
        found += exploded(argument, margin + "    ")
    return [*found, f"{margin}){tail}"]


def exploded(node: ast.expr, margin: str) -> list[str]:
    text = ast.unparse(node).replace("'", '"')
    if len(f"{margin}{text},") <= WIDTH:
        return [f"{margin}{text},"]
    inner = node.args if isinstance(node, ast.Call) else node.elts
    head = f"{ast.unparse(node.func)}(" if isinstance(node, ast.Call) else "("
    found = [f"{margin}{head}"]
    for one in inner:
        found += exploded(one, margin + "    ")
    return [*found, f"{margin}),"]


def table_lines(values: dict[str, Any], margin: int, head: str, tail: str) -> list[str]:
    """A dict literal over as few lines as it takes, kept so from the formatter."""
    entries = [f"{quoted(name)}: {quoted(value)}" for name, value in values.items()]
    text = ", ".join(entries).replace(": ", ":\0")
    rows = textwrap.wrap(text, WIDTH - margin - 4, break_long_words=False, break_on_hyphens=False)
    rows = [row.replace("\0", " ") for row in rows]
    space = " " * margin
    one = f"{space}{head}{{{', '.join(entries)}}}{tail}"
    if len(one) <= WIDTH:
        return [one]
    return [f"{space}{head}{{", *(f"{space}    {row}" for row in rows), f"{space}}}{tail}  # fmt: skip"]
