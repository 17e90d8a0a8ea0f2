"""`configuration_zoo.py` of a model folder: the config class with what one model uses. Never shipped.

The fields are those of the plan (export_config_fields.py); derivations, checks and what the model asks are the
package's own methods, folded (export_config_fold.py); what stands around them is export_config_front.py.
"""

import ast
import builtins
import importlib
import logging
import re
import symtable
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described
from configuration_zoo.fields_checks import refuse_unless

from .export_config_fields import CONSTRUCTORS, Declarations, Plan, kind_text, planned, quoted
from .export_config_fold import Folder
from .export_config_tables import Tables, constant_name, tuple_lines
from .export_config_text import Text
from .export_config_worlds import World, worlds
from .export_join import import_lines, is_block, reading_order
from .export_source import TARGETS, Binding, Piece, global_names, read_source, sources

HERE = Path(__file__).parent
# A config's own remarks, while its statements are tried.
SILENT = logging.Logger("silent", level=logging.CRITICAL)
SILENT.warning_once = SILENT.warning
# What is taken from as text.
FRONT, KINDS = HERE / "export_config_front.py", HERE / "export_config_kinds.py"
# What transformers, PEFT and serving engines ask a config of any model.
ASKED = ("logit_scale", "kv_sharing_modes", "qk_head_dim", "num_kv_shared_layers")
# Groups that are rewritten here instead of being folded.
REPLACED = ("SettingsAccess", "PerLayerFields", "ParallelPlans", "ZooConfig")
DOCSTRING = '''"""{says}

One of the two files that `zoo export` makes of zoo's packages for this model: the fields, derivations and checks of the
concepts that it has. `zoo export FOLDER --check` says whether they are as they were made.
"""'''


@dataclass(frozen=True)
class Request:
    """What is asked for: the same text for the same signature."""

    signature: str
    config: Any = field(compare=False)
    plan: Plan = field(compare=False)
    reads: frozenset = field(compare=False)


def exported_configuration(config: ZooConfig, facts: Iterable[str] = (), modeling: str | None = None) -> str:
    """The text of `configuration_zoo.py` for a config.

    `facts` are the names of fields on whose values the modeling half was folded, `modeling` its text.
    """
    plan = planned(config, set(facts))
    reads = asked_by_package() if modeling is None else words_of(modeling)
    kinds = sorted(map(repr, set(zip(*plan.lists.values(), strict=True))))
    signature = repr(
        (plan.statuses, [*plan.lists], kinds, plan.carried, plan.written, sorted(reads) if modeling else "")
    )
    return rendered(Request(signature, config, plan, frozenset(reads)))


def words_of(text: str) -> set[str]:
    """The names of attributes, and the words in quotes, of a source."""
    return set(re.findall(r"\.(\w+)", text)) | set(re.findall(r"\"(\w+)\"", text))


@cache
def asked_by_package() -> frozenset[str]:
    """The attributes that the package's model reads of anything."""
    paths = [path for path in HERE.glob("*.py") if not path.name.startswith("export")]
    return frozenset().union(*(words_of(path.read_text(encoding="utf-8")) for path in paths))


@lru_cache(maxsize=32)
def rendered(request: Request) -> str:
    return Configuration(request).text()


@cache
def front() -> Text:
    return Text(FRONT.read_text(encoding="utf-8"))


@cache
def text_of(module: str) -> Text:
    path = Path(importlib.import_module(module).__file__)
    return Text(path.read_text(encoding="utf-8"))


class Configuration:
    """The file of one config."""

    def __init__(self, request: Request):
        self.config, self.plan, self.reads = request.config, request.plan, request.reads
        self.every = described(type(self.config))
        self.fields = {one.name: one for one in fields(self.config)}
        self.flags = self.facts()
        plain = (self.config, self.plan.statuses, self.plan.lists, self.plan.groups)
        self.deriving, self.complete = worlds(*plain, True), worlds(*plain, False)

    def facts(self) -> dict[str, bool]:
        """The names in capitals of export_config_front.py."""
        tables = self.config.rope_parameters or {}
        mixed = len(set(zip(*self.plan.lists.values(), strict=True))) > 1
        config = self.config
        return {
            "MECHANISMS": {"attention_type", "linear_attention_type"} & self.plan.lists.keys() != set(),
            "SHARED_KEYS": bool(config.num_kv_shared_layers),
            "SHARED_BLOCKS": bool(config.num_mem_blocks),
            "LIGHTNING": "lightning_attention" in (config.linear_attention_type or ()),
            "PER_LAYER_INPUT": bool(config.hidden_size_per_layer_input),
            "GROUPS": any("." in name for name in self.plan.carried),
            "LISTS": mixed or any(name in self.plan.written for name in self.plan.lists),
            "MIXED": mixed,
            "ROTATES": self.config.position_embedding_type == "rope",
            "NESTED": any(key in self.config.layer_types for key in tables),
            "BIDIRECTIONAL": bool(self.config.use_bidirectional_attention),
        }

    # -- methods ----------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> list[type]:
        package = type(self.config).__module__.partition(".")[0]
        return [group for group in type(self.config).__mro__ if group.__module__.partition(".")[0] == package]

    def group_trees(self) -> Iterator[tuple[type, Text, ast.ClassDef]]:
        for group in self.groups:
            text = text_of(group.__module__)
            tree = next(t for t in text.tree.body if isinstance(t, ast.ClassDef) and t.name == group.__name__)
            yield group, text, tree

    def methods(self) -> dict[str, list[str]]:
        """The methods of the groups that the class needs, folded: name -> lines."""
        found = {}
        nodes = {}
        for group, text, tree in self.group_trees():
            if group.__name__ not in REPLACED:
                nodes |= {(f.name, is_setter(f)): (text, f, group) for f in tree.body if isinstance(f, ast.FunctionDef)}
        words = {name: words_of(text.segment(function)) for (name, _), (text, function, _) in nodes.items()}
        derive = reached(words, "resolve_")
        answers = {}
        for asked in (None, answers):
            # Again for those that ask what turned out to be always the same.
            for (name, setter), (text, function, group) in nodes.items():
                base = self.deriving if name in derive else self.complete
                nothing = name in ASKED and name not in self.reads and all(is_nothing(one, name) for one in base)
                if nothing or asked is not None and not words[name] & asked.keys():
                    continue
                lines = self.folded(text, function, group, base)
                found[name, setter] = lines
                if lines is None and not is_property(function):
                    answers[name] = lambda *_: None
                elif lines is not None and (value := one_answer(lines)) is not None:
                    answers[name] = value[0] if is_property(function) else lambda *_, value=value[0]: value
            for world in (*self.deriving, *self.complete):
                world.__dict__["_answers"].update(answers)
        merged = {}
        for (name, _), lines in found.items():
            if lines is not None:
                merged[name] = merged.get(name, []) + ([""] if name in merged else []) + lines
        found = merged
        return self.needed(found)

    def folded(self, text: Text, function: ast.FunctionDef, group: type, base: list) -> list[str] | None:
        space = vars(importlib.import_module(group.__module__))
        names = [argument.arg for argument in function.args.args[1:]]
        spaces = []
        for world in base:
            indices = range(len(world.block_types)) if names in (["layer_idx"], ["index"]) else [None]
            for index in indices:
                own = {"self": world, "__builtins__": builtins} | ({names[0]: index} if index is not None else {})
                # Statements are tried; what they would say is no remark about this config.
                own |= {"refuse_unless": self.refuse_unless, "logger": SILENT}
                spaces.append({**space, **own})
        folder = Folder(text, function)
        asked = not function.name.startswith(("resolve_", "validate_", "warn_", "_")) and not is_setter(function)
        if asked and len(names) < 2 and not folder.is_reached(spaces):
            return None
        lines = folder.folded(spaces)
        if lines is None:
            return None
        decorators = [d for d in function.decorator_list if ast.unparse(d) != "for_each_layer"]
        return [*(f"    @{ast.unparse(d)}" for d in decorators), *lines]

    def refuse_unless(self, config: Any, condition: bool, reason: str, names: Iterable[str]) -> None:
        """As in the folder: what has one value there is not asked."""
        refuse_unless(config, condition, reason, [name for name in names if name in self.plan.carried])

    def needed(self, found: dict[str, list[str]]) -> dict[str, list[str]]:
        """The methods that something calls."""
        words = {name: words_of("\n".join(lines)) for name, lines in found.items()}
        roots = {name for name in found if name.startswith(("resolve_", "validate_"))}
        front_words = words_of("\n".join(self.front_class))
        waiting = [name for name in found if name in roots | set(ASKED) | self.reads | front_words]
        kept = set()
        while waiting:
            name = waiting.pop()
            if name not in kept:
                kept.add(name)
                waiting += [other for other in words[name] if other in found]
        return {name: lines for name, lines in found.items() if name in kept}

    @cached_property
    def front_class(self) -> list[str]:
        """The methods of the front, folded."""
        text = front()
        tree = next(t for t in text.tree.body if isinstance(t, ast.ClassDef) and t.name == "ZooConfig")
        lines = []
        for function in [f for f in tree.body if isinstance(f, ast.FunctionDef)]:
            if function.name == "validate_rope" and not self.flags["ROTATES"]:
                continue
            if function.name in ("outside_layers", "write_card") and function.name not in self.reads:
                continue
            if function.name == "to_dict" and not self.plan.said:
                continue
            folded = Folder(text, function).folded([{**self.flags, "__builtins__": {}}])
            decorators = [f"    @{ast.unparse(d)}" for d in function.decorator_list]
            lines += ["", *decorators, *(folded or text.moved(function, 0))]
        return lines

    # -- the file ---------------------------------------------------------------------------------------------------

    def plans(self) -> list[str]:
        lines = []
        for name in ("base_model_tp_plan", "base_model_ep_plan"):
            if plan := getattr(self.config, name):
                lines += [f"    {name} = {{", *(f"        {quoted(k)}: {quoted(v)}," for k, v in plan.items()), "    }"]
        return lines

    def class_lines(self) -> list[str]:
        text = front()
        tree = next(t for t in text.tree.body if isinstance(t, ast.ClassDef) and t.name == "ZooConfig")
        attributes = [line for s in tree.body if isinstance(s, ast.Assign) for line in text.moved(s, 0)]
        bases = "SettingsAccess, PreTrainedConfig" if self.flags["GROUPS"] else "PreTrainedConfig"
        lines = ["@takes_words"] if self.flags["MIXED"] else []
        lines += ["@strict", f"class ZooConfig({bases}):", *class_docstring(), "", *attributes, *self.plans()]
        for _, text, tree in self.group_trees():
            if own := Declarations(text, tree).lines(self.plan, self.every, self.fields):
                lines += ["", *own]
        methods = self.methods()
        lines += self.front_class
        resolves = [name for name in self.resolve_order() if name in methods]
        lines += ["", "    def _resolve(self):", *(f"        self.{name}()" for name in resolves)]
        if not resolves:
            lines += ["        pass"]
        for name in methods:
            lines += ["", *methods[name]]
        return lines

    def resolve_order(self) -> list[str]:
        """The derivations in the order in which the package runs them."""
        _, _, tree = next(one for one in self.group_trees() if one[0] is type(self.config))
        resolve = next(f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "_resolve")
        return [s.value.func.attr for s in resolve.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]

    def text(self) -> str:
        body = self.class_lines()
        tables = Tables(self.config, self.plan, self.every)
        found = tables.lines(self.flags["MIXED"])
        for group in self.groups:
            # The fields of a group, asked for as a whole.
            asked, name = f"described({group.__name__})", constant_name(group.__name__)
            if any(asked in line for line in body):
                body = [line.replace(asked, name) for line in body]
                own = [one for one in described(group) if tables.is_open(one)]
                found[name] = tuple_lines(name, own)
        ending = ["for name, value in LEFT_OUT.items():", "    setattr(ZooConfig, name, value)"]
        if any(group in self.plan.left for group in self.plan.groups):
            ending += ["    for key, entry in value.items() if isinstance(value, dict) else ():"]
            ending += ['        setattr(ZooConfig, f"{name}.{key}", entry)']
        if self.flags["GROUPS"]:
            ending += ["add_key_properties(ZooConfig)"]
        if "indexed_attention" in self.config.layer_types:
            ending += ["register_layer_types()"]
        constructors = [
            f"{name} = partial(setting, {kind_text(kind)})"
            for kind, name in CONSTRUCTORS.items()
            if any(f"= {name}(" in line or f"={name}(" in line for line in body)
        ]
        known = {*found, *CONSTRUCTORS.values(), "READ_BY"}
        pieces, bindings = self.pieces("\n".join([*constructors, "", *body, "", *ending]), known)
        bindings |= {Binding("functools", "partial", "partial")}
        lines = [*DOCSTRING.format(says=sources()["configuration_zoo"].docstring.split("\n")[0]).split("\n"), ""]
        lines += [*import_lines(bindings), "", "logger = logging.get_logger(__name__)"]
        lines += [line for name in found for line in found[name]]
        before = None
        for piece in pieces:
            block = before is None or is_block(piece) or is_block(before)
            lines += ["", ""] if block and before is not None or is_block(piece) else []
            text = piece.text.split("\n")
            # Without the heading of a section of its file.
            start = max((index + 1 for index, line in enumerate(text) if line.startswith("# -- ")), default=0)
            lines += "\n".join(text[start:]).lstrip("\n").split("\n")
            before = piece
        return "\n".join([*lines, "", "", *constructors, "", "", *body, "", "", *ending]) + "\n"

    def pieces(self, text: str, given: set[str]) -> tuple[list[Piece], set[Binding]]:
        """What the class needs of the package and the front, and the imports of all of it."""
        own = sources()
        kinds = read_source(KINDS)
        kinds.pieces = self.folded_pieces()
        order = [kinds, read_source(FRONT), *(own[name] for name in reading_order(own, TARGETS[0]))]
        every, source_of, imports = {}, {}, {}
        for source in reversed(order):
            for piece in source.pieces:
                for name in piece.defines:
                    # A constant may be added to where it stands; what the front has takes the place of the package's.
                    again = name in every and source_of[name] is source
                    every[name] = [*(every[name] if again else ()), piece]
                    source_of[name] = source
            imports |= {alias: one for alias, one in source.imports.items() if not is_ours(one)}
        waiting, found, bindings, seen = list(global_words(text)), {}, set(), set()
        while waiting:
            name = waiting.pop()
            if name in seen or name in given or name in self.flags or name == "ZooConfig":
                continue
            seen.add(name)
            if name in every and name != "logger":
                for piece in every[name]:
                    found[id(piece)] = piece
                    waiting += [*piece.needs, *piece.defines]
            elif name in imports:
                bindings.add(imports[name])
            elif name == "logger":
                bindings.add(imports["logging"])
        return [piece for source in order for piece in source.pieces if id(piece) in found], bindings

    def folded_pieces(self) -> list[Piece]:
        """The functions of export_config_kinds.py, without what a model of this kind does not come to."""
        text = Text(KINDS.read_text(encoding="utf-8"))
        pieces = []
        for piece in read_source(KINDS).pieces:
            function = next((t for t in text.tree.body if getattr(t, "name", None) in piece.defines), None)
            if isinstance(function, ast.FunctionDef) and piece.needs & self.flags.keys():
                lines = Folder(text, function).folded([{**self.flags, "__builtins__": {}}])
                piece = Piece(piece.module, piece.index, "\n".join(lines), piece.gap)
            pieces.append(piece)
        return pieces


def is_ours(binding: Binding) -> bool:
    return binding.neighbour is not None or binding.module.partition(".")[0] in TARGETS


def global_words(text: str) -> set[str]:
    return global_names(symtable.symtable(text, "exported", "exec"))


def class_docstring() -> list[str]:
    return ['    """A decoder: what this folder\'s model can be, one name or number per concept."""']


def is_nothing(world: World, name: str) -> bool:
    """Whether an answer is as good as none: None, or None for each layer."""
    try:
        value = getattr(world, name)
    except Exception:
        return False
    return value is None or isinstance(value, list) and not any(one is not None for one in value)


def is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(d) == "property" for d in function.decorator_list)


def one_answer(lines: list[str]) -> tuple | None:
    """What a method gives back that does nothing else, as a tuple of one; None for any other method."""
    (tree,) = ast.parse(textwrap.dedent("\n".join(lines))).body
    body = [s for s in tree.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if len(body) == 1 and isinstance(body[0], ast.Return) and isinstance(body[0].value, ast.Constant):
        return (body[0].value.value,)
    return None


def is_setter(function: ast.FunctionDef) -> bool:
    return any("setter" in ast.unparse(d) for d in function.decorator_list)


def reached(words: dict[str, set[str]], prefix: str) -> set[str]:
    waiting, found = [name for name in words if name.startswith(prefix)], set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in words[name] if other in words]
    return found
