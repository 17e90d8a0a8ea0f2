"""What the config decides in the code of a model: the values of expressions.

Never shipped. Only expressions that do nothing else are asked for their value; `self.gate` has one where it is
the same in all objects of a class (export_model_facts.py).
"""

import ast
import builtins
import importlib
import types
from functools import cache
from typing import Any

from .export_config_code import compiled, loaded, nodes_of, own_names, source
from .export_config_fields import quoted
from .export_config_fold import Frame
from .export_config_worlds import World
from .export_source import sources

CONFIG = "__config"
# Tables of the package that the exporter fills in.
FILLED_IN = ("LEFT_OUT", "DECIDED")
BUILTINS = {
    name: getattr(builtins, name)
    for name in (
        "all any bool dict enumerate float frozenset getattr int isinstance len list max min next range reversed set"
        " sorted str sum tuple zip"
    ).split()
}
# What others set or read on a module of ours.
OPEN_ATTRIBUTES = {"gradient_checkpointing", "training", "config", "is_initialized"}
# Parameters by their annotation: those that are the config, those that are a model.
CONFIGS, MODELS = ("ZooConfig",), ("PreTrainedModel", "ZooModel", "ZooPreTrainedModel")
PLAIN = (type(None), bool, int, float, str)
# Expressions that are not asked for their value.
ACTING = (ast.NamedExpr, ast.Yield, ast.Await, ast.Lambda, ast.JoinedStr)


def is_path(node: ast.expr) -> bool:
    """Whether an expression is a name, an attribute of one, or a constant."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in (__package__, "configuration_zoo")


def is_literal(node: ast.expr | None) -> bool:
    """Whether an expression is written out: constants, tuples and tables of them, and names of functions and classes in
    tables."""
    if isinstance(node, ast.Call):
        called = isinstance(node.func, ast.Name) and node.func.id in ("frozenset", "set", "tuple", "dict")
        return called and all(is_literal(argument) for argument in node.args) and not node.keywords
    if isinstance(node, ast.Dict):
        keys = all(key is not None and is_literal(key) for key in node.keys)
        return keys and all(isinstance(value, ast.Name) or is_literal(value) for value in node.values)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return all(is_literal(entry) for entry in node.elts)
    return isinstance(node, ast.Constant)


@cache
def fixed_names(module: str) -> dict[str, Any]:
    """The functions, classes and constants of the two packages that a file can name."""
    space, found = vars(importlib.import_module(f".{module}", __package__)), {}
    for name, value in space.items():
        own = str(getattr(value, "__module__", "")).partition(".")[0] in (__package__, "configuration_zoo")
        if own and isinstance(value, types.FunctionType | type) or name in constants():
            found[name] = value
    return found


@cache
def constants() -> frozenset[str]:
    """The names of what is written out at the top of a file."""
    pieces = [piece for one in sources().values() for piece in one.pieces]
    return frozenset(
        name
        for piece in pieces
        for name in piece.defines
        if name not in FILLED_IN and isinstance(piece.tree, ast.Assign | ast.AnnAssign) and is_literal(piece.tree.value)
    )


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def is_in(node: ast.expr, bound: set[int]) -> bool:
    return isinstance(node, ast.Name) and id(node) in bound


class ModelFrame(Frame):
    """The local names of a function of the model; `place` says of which."""

    def __init__(self, spaces: list[dict], opened: set[str], place: "Place"):
        super().__init__(spaces, opened)
        self.place = place

    def like(self, spaces: list[dict], opened: set[str]) -> "ModelFrame":
        return ModelFrame(spaces, opened, self.place)

    def values(self, node: ast.expr) -> list | None:
        if (part := self.chosen(node)) is not None:
            return self.values(part)
        if isinstance(node, ast.IfExp) and is_none(node.body) and is_none(node.orelse):
            return [None for _ in self.spaces]
        node = self.place.applied(node)
        if loaded(node) & self.opened or not self.is_pure(node):
            return None
        code, found = compiled(source(node), True), []
        for space in self.spaces:
            try:
                found.append(eval(code, space))
            except Exception:
                return None
        return found

    def is_pure(self, node: ast.expr) -> bool:
        """Whether to ask for a value changes nothing and depends on nothing but what the frame knows."""
        if any(nodes_of(node, kind) for kind in ACTING):
            return False
        space, bound = self.spaces[0], own_names(node)
        if not all(one.id in space or one.id in BUILTINS or id(one) in bound for one in nodes_of(node, ast.Name)):
            return False
        return all(self._is_known(one, bound) for one in nodes_of(node, ast.Call))

    def _is_known(self, node: ast.Call, bound: set[int]) -> bool:
        space = self.spaces[0]
        if isinstance(node.func, ast.Name):
            if node.func.id in BUILTINS:
                return True
            names = [one for part in node.args for one in nodes_of(part, ast.Name)]
            given = [space.get(one.id) for one in names]
            is_function = isinstance(space.get(node.func.id), types.FunctionType)
            return is_function and any(isinstance(one, World) for one in given)
        root = node.func
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Call | ast.Constant) or is_in(root, bound):
            return True
        return isinstance(root, ast.Name) and not isinstance(space.get(root.id), types.FunctionType | type)

    def where(self, node: ast.expr, wanted: bool) -> "ModelFrame":
        return self.apart()

    def runs(self, stmt: ast.stmt) -> str:
        return "acts"

    def over(self, target: ast.expr, iterable: ast.expr) -> None:
        return None

    def names_one(self, stmt: ast.stmt) -> bool:
        if not isinstance(stmt, ast.Assign) or len(stmt.targets) != 1:
            return False
        pairs = [(stmt.targets[0], stmt.value)]
        if isinstance(stmt.targets[0], ast.Tuple):
            if not isinstance(stmt.value, ast.Tuple) or len(stmt.value.elts) != len(stmt.targets[0].elts):
                return self.names_several(stmt)
            pairs = list(zip(stmt.targets[0].elts, stmt.value.elts, strict=True))
        found = [(target, self.values(value)) for target, value in pairs]
        names = [target.id for target, values in found if isinstance(target, ast.Name) and values is not None]
        for target, values in found:
            if isinstance(target, ast.Name) and values is not None:
                self.bind(target.id, values)
        return len(names) == len(pairs)

    def names_several(self, stmt: ast.Assign) -> bool:
        """`a, b = f(config)`."""
        names, found = stmt.targets[0].elts, self.values(stmt.value)
        if found is None or not all(isinstance(one, ast.Name) for one in names):
            return False
        if not all(isinstance(one, tuple | list) and len(one) == len(names) for one in found):
            return False
        for index, name in enumerate(names):
            self.bind(name.id, [one[index] for one in found])
        return True

    def bind(self, name: str, values: list) -> None:
        for space, value in zip(self.spaces, values, strict=True):
            space[name] = value
        self.opened = self.opened - {name}

    def literal(self, node: ast.expr) -> str | None:
        """The value of what is known without a question to the config: attributes, empty tables, idle functions."""
        root = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else None
        named = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in self.place.local
        known = root in self.place.roots and isinstance(node.ctx, ast.Load)
        if named or known or isinstance(node, ast.BinOp | ast.Compare):
            found = self.constant(node)
            return quoted(found[0]) if found is not None and is_short(found[0]) else None
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("get", "pop") and node.args:
            if self.values(node.func.value) == [{} for _ in self.spaces] and is_none(node.args[-1]):
                return "None"
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in constants():
            return self.entry(node)
        written = self.place.written(node)
        return None if written is None else ast.unparse(written).replace("'", '"')

    def entry(self, node: ast.Subscript) -> str | None:
        """The name of the function or class that stands in a table under a key that is decided."""
        found = self.values(node) or [None]
        name = getattr(found[0], "__name__", None)
        return name if name in self.place.defined and all(one is found[0] for one in found) else None

    def constant(self, node: ast.expr) -> tuple | None:
        """The one plain value of an expression as a tuple of one, None where there is none."""
        found = self.values(node)
        return one_of(found) if found else None


def is_short(value: Any) -> bool:
    """Whether a value can be written in place of its name."""
    return isinstance(value, PLAIN) and str(value) not in ("inf", "-inf", "nan")


def one_of(values: list) -> tuple | None:
    first = values[0]
    plain = type(first) in PLAIN or type(first) is tuple and all(type(entry) in PLAIN for entry in first)
    alike = plain and all(type(one) is type(first) for one in values)
    return (first,) if alike and all(one == first for one in values) else None


class Place:
    """Where code stands: which of its names are configs and models, and what is known of attributes there."""

    def __init__(self, facts: Any, roots: dict[str, dict[str, Any]], has_config: bool, models: set[str]):
        self.roots, self.has_config, self.models = roots, has_config, models
        self.returns, self.empty, self.defined = facts.returns, facts.empty, facts.defined
        # The parameters and local names of the function.
        self.local: set[str] = set()

    def is_idle(self, stmt: ast.stmt) -> bool:
        """Whether a statement calls a function that does nothing, or goes through an empty table."""
        if isinstance(stmt, ast.For):
            return self.is_empty(stmt.iter)
        called = isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Call) and stmt.value.func
        return isinstance(called, ast.Name) and called.id in self.returns

    def is_empty(self, node: ast.expr) -> bool:
        """Whether an expression is a table that has lost its rows, or what stands in it."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            node = node.func.value if node.func.attr in ("items", "values", "keys") else node
        return isinstance(node, ast.Name) and node.id in self.empty

    def written(self, node: ast.expr) -> ast.expr | None:
        """What an expression is that asks an empty table, or a function that gives back the same for all."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.returns:
            given = [one.value if isinstance(one, ast.Starred) else one for one in node.args]
            if all(is_path(one) for one in [*given, *(one.value for one in node.keywords)]):
                return self.returns[node.func.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            if self.is_empty(node.func.value) and all(is_path(one) or is_literal(one) for one in node.args):
                return node.args[1] if len(node.args) > 1 else ast.Constant(None)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In) and self.is_empty(node.comparators[0]):
            return ast.Constant(False)
        if isinstance(node, ast.ListComp | ast.DictComp) and self.is_empty(node.generators[0].iter):
            return ast.List([], ast.Load()) if isinstance(node, ast.ListComp) else ast.Dict([], [])
        return None

    def applied(self, node: ast.expr) -> ast.expr:
        """An expression with the attributes that are known in place of their names."""
        if getattr(node, "known_by", None) is not self:
            node.known_by, node.as_known = self, node
            names, words = names_and_words(node)
            known = "config" in names or not all(facts.keys().isdisjoint(names) for facts in self.roots.values())
            if known or not (self.empty.isdisjoint(words) and self.returns.keys().isdisjoint(words)):
                text = ast.unparse(Known(self).visit(parsed(source(node))))
                if text != source(node):
                    node.as_known = parsed(text)
                    node.as_known.as_text = text
        return node.as_known


def names_and_words(node: ast.expr) -> tuple[set[str], set[str]]:
    """The names of attributes in an expression, and the names."""
    if not hasattr(node, "names_and_words"):
        names = {one.attr for one in nodes_of(node, ast.Attribute)}
        node.names_and_words = names, {one.id for one in nodes_of(node, ast.Name)}
    return node.names_and_words


def parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class Known(ast.NodeTransformer):
    """Puts what is known in place of what asks for it."""

    def __init__(self, place: Place):
        self.place = place

    def visit(self, node: ast.AST) -> ast.AST:
        written = self.place.written(node) if isinstance(node, ast.expr) else None
        return super().visit(node) if written is None else written

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name):
            own = node.value.id == "self"
            if node.attr == "config" and (own and self.place.has_config or node.value.id in self.place.models):
                return ast.Name(CONFIG, ast.Load())
            known = self.place.roots.get(node.value.id, {})
            if node.attr in known:
                return ast.Constant(known[node.attr])
        self.generic_visit(node)
        return node
