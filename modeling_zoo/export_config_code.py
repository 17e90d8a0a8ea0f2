"""What code names and reads, statements that stay, and code made ready to be run: for the exporter. Never shipped."""

import ast
from functools import cache
from types import CodeType

IN_PLACE = ("add", "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update")


class Returned(Exception):
    """What was run came to a `return`."""


class WithRaise(ast.NodeTransformer):
    """Makes every `return` of a statement an exception."""

    def visit_Return(self, node: ast.Return) -> ast.AST:
        call = ast.Raise(exc=ast.Name("__Returned", ast.Load()), cause=None)
        return ast.copy_location(ast.fix_missing_locations(ast.copy_location(call, node)), node)

    def visit_FunctionDef(self, node: ast.AST) -> ast.AST:
        return node

    visit_Lambda = visit_FunctionDef


@cache
def compiled(text: str, evaluates: bool) -> CodeType:
    if evaluates:
        return compile(text, "<exported>", "eval")
    tree = ast.fix_missing_locations(WithRaise().visit(ast.parse(text)))
    return compile(tree, "<exported>", "exec")


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nodes_of(node: ast.AST, kind: type | None = None) -> list[ast.AST]:
    """All nodes of a tree that stays as it is, or those of one kind, in the order of `ast.walk`, without those that say
    "load" or "store"."""
    if not hasattr(node, "nodes_below"):
        node.nodes_below = found = [node]
        node.by_kind = kinds = {}
        for one in found:
            kinds.setdefault(type(one), []).append(one)
            for name in one._fields:
                value = getattr(one, name, None)
                if type(value) is list:
                    found += [entry for entry in value if isinstance(entry, ast.AST)]
                elif isinstance(value, ast.AST) and name != "ctx":
                    found.append(value)
    return node.nodes_below if kind is None else node.by_kind.get(kind, [])


def own_names(node: ast.AST) -> set[int]:
    """The names in comprehensions that are their own, by the identity of their nodes."""
    if not hasattr(node, "names_own"):
        node.names_own = set()
        for one in [one for kind in COMPREHENSIONS for one in nodes_of(node, kind)]:
            names = nodes_of(one, ast.Name)
            bound = {n.id for g in one.generators for n in nodes_of(g.target, ast.Name)}
            node.names_own |= {id(n) for n in names if n.id in bound}
    return node.names_own


def loaded(node: ast.AST) -> set[str]:
    """The names that code reads."""
    if not hasattr(node, "names_loaded"):
        names = [n for n in nodes_of(node, ast.Name) if isinstance(n.ctx, ast.Load)]
        node.names_loaded = {n.id for n in names if id(n) not in own_names(node)}
    return node.names_loaded


def stored(node: ast.AST) -> set[str]:
    """The names that code binds, those of comprehensions left out."""
    if not hasattr(node, "names_stored"):
        names = [n for n in nodes_of(node, ast.Name) if not isinstance(n.ctx, ast.Load)]
        node.names_stored = {n.id for n in names if id(n) not in own_names(node)} | changed(node)
    return node.names_stored


def changed(node: ast.AST) -> set[str]:
    """The names whose value code changes in place."""
    if not hasattr(node, "names_changed"):
        stores = [n for n in nodes_of(node, ast.Subscript) if not isinstance(n.ctx, ast.Load)]
        calls = [n.func for n in nodes_of(node, ast.Call) if isinstance(n.func, ast.Attribute)]
        found = [n.value for n in [*stores, *(call for call in calls if call.attr in IN_PLACE)]]
        node.names_changed = {n.id for n in found if isinstance(n, ast.Name)}
    return node.names_changed


def source(node: ast.AST) -> str:
    """The text of a node, as Python writes it."""
    if not hasattr(node, "as_text"):
        node.as_text = ast.unparse(node)
    return node.as_text


class Kept:
    """A statement that stays: its lines, and what it names without acting."""

    def __init__(self, lines: list[str], reads: set[str], names: set[str] | None = None):
        self.lines, self.reads, self.names = lines, reads, names


def unread_left_out(kept: list[Kept], elsewhere: set[str] = frozenset()) -> list[Kept]:
    """Without the statements that name what is read neither behind them nor `elsewhere`."""
    while True:
        read = [set(elsewhere).union(*(one.reads for one in kept[index + 1 :])) for index in range(len(kept))]
        rest = [one for one, names in zip(kept, read, strict=True) if one.names is None or one.names & names]
        if len(rest) == len(kept):
            return kept
        kept = rest
