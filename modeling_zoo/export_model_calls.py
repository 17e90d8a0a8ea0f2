"""Who calls what in the code of a model, and with which arguments: parameters with one value, and those not needed.

Never shipped. A function whose name is passed on, and a method that others call, keep their parameters.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .export_config_code import nodes_of
from .export_config_text import WIDTH, Text, refit
from .export_model_facts import Facts, callers_and_called, is_call_of_entry, names_asked, stored_anywhere
from .export_model_values import PLAIN, ModelFrame, is_path, one_of
from .export_source import Piece, changed_to

# Where something has been taken out of a line.
MARK = "\0"
Definition = tuple[str, str | None, ast.FunctionDef]


@dataclass
class Callee:
    """A function, the constructor of a class, or all methods of one name; and the calls of it."""

    definitions: list[Definition] = field(default_factory=list)
    # [(call, the names where it stands, the function where it stands)].
    calls: list[tuple[ast.Call, ModelFrame, ast.FunctionDef]] = field(default_factory=list)
    is_escaped: bool = False
    # Whether a call may be of this or of another.
    is_shared: bool = False

    def parameters(self, definition: Definition) -> list[ast.arg]:
        arguments = definition[2].args
        return [*arguments.posonlyargs, *arguments.args][definition[1] is not None and not is_static(definition[2]) :]


def is_static(function: ast.FunctionDef) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in function.decorator_list)


class Calls:
    """All calls in the pieces of a program."""

    def __init__(self, facts: Facts, pieces: list[Piece], called_by_others: Any):
        self.facts, self.pieces, self.called_by_others = facts, pieces, called_by_others
        self.callees: dict[str, Callee] = {}
        self.tables = {n: p for p in pieces if isinstance(getattr(p.tree, "value", None), ast.Dict) for n in p.defines}
        for piece in pieces:
            self.define(piece)
        for piece in pieces:
            if isinstance(piece.tree, ast.FunctionDef | ast.ClassDef):
                known = self.facts.snapshot(piece)
                if getattr(piece, "calls_known", None) != known:
                    piece.calls_known, self.events = known, []
                    self.read(piece)
                    piece.events = self.events
                self.replay(piece.events)
            else:
                self.events = []
                self.read(piece)
                self.replay(self.events)

    def define(self, piece: Piece) -> None:
        tree = piece.tree
        if isinstance(tree, ast.FunctionDef):
            self.callees[tree.name] = Callee([(piece.module, None, tree)], is_escaped=bool(tree.decorator_list))
        elif isinstance(tree, ast.ClassDef):
            for one in [one for one in tree.body if isinstance(one, ast.FunctionDef)]:
                name = tree.name if one.name == "__init__" else f".{one.name}"
                callee = self.callees.setdefault(name, Callee())
                callee.definitions.append((piece.module, tree.name, one))
                others = one.name != "__init__" and self.called_by_others(piece, one.name)
                callee.is_escaped |= others or bool(one.decorator_list) and not is_static(one)

    def read(self, piece: Piece) -> None:
        """Collects the calls in a piece, and the names it passes on."""
        tree = piece.tree
        if isinstance(tree, ast.FunctionDef):
            self.read_function(piece.module, None, tree)
        elif isinstance(tree, ast.ClassDef):
            for one in tree.body:
                if isinstance(one, ast.FunctionDef):
                    self.read_function(piece.module, tree.name, one)
                else:
                    self.escape_all(one)
        elif piece.defines and piece.defines[0] in self.tables:
            self.escape_all(tree.value, only_parts=not self.is_called_only(piece.defines[0]))
        else:
            self.escape_all(tree)

    def is_called_only(self, table: str) -> bool:
        """Whether a table is only asked for what is called at once: `TABLE[key](...)`."""
        if not hasattr(self, "looked_into"):
            self.looked_into: dict[str, list] = {}
            for piece in self.pieces:
                for name, is_called in names_asked(piece):
                    if name in self.tables:
                        self.looked_into.setdefault(name, []).append(is_called)
        return all(self.looked_into.get(table, [False]))

    def escape_all(self, node: ast.AST, only_parts: bool = True) -> None:
        if only_parts:
            for one in nodes_of(node, ast.Name):
                if isinstance(one.ctx, ast.Load):
                    self.escape(one.id)

    def escape(self, name: str) -> None:
        self.events.append(name)

    def replay(self, events: list) -> None:
        """Takes in what has been read: names that are passed on (of methods with a dot before them), and calls."""
        for event in events:
            if isinstance(event, str):
                for owner in [event] if event in self.callees else self.owners(event):
                    self.callees[owner].is_escaped = True
                continue
            names = {name for name in self.called(*event) if name in self.callees}
            for name in names:
                self.callees[name].calls.append(event[:3])
                self.callees[name].is_shared |= len(names) > 1

    def owners(self, name: str) -> list[str]:
        """Under which names a function is, or the constructor that a class has."""
        if name in self.facts.real:
            found = [base.__name__ for base in self.facts.real[name].__mro__ if base.__name__ in self.callees][:1]
            return found
        return [name] if name in self.callees else []

    def read_function(self, module: str, owner: str | None, function: ast.FunctionDef) -> None:
        frame = self.facts.started(module, owner, function)
        skipped = {id(n) for one in annotations(function) for n in nodes_of(one)}
        for node in nodes_of(function, ast.Call):
            skipped |= self.read_call(node, frame, owner, function)
        for node in nodes_of(function, ast.Name):
            if id(node) not in skipped and isinstance(node.ctx, ast.Load):
                self.escape(node.id)
        for node in nodes_of(function, ast.Attribute):
            if id(node) not in skipped and isinstance(node.ctx, ast.Load) and f".{node.attr}" in self.callees:
                self.escape(f".{node.attr}")
        for node in nodes_of(function, ast.Constant):
            if id(node) not in skipped and isinstance(node.value, str) and f".{node.value}" in self.callees:
                self.escape(f".{node.value}")

    def read_call(self, node: ast.Call, frame: ModelFrame, owner: str | None, function: ast.FunctionDef) -> set[int]:
        """Notes a call; gives the nodes in it that pass no name on."""
        name = getattr(node.func, "id", None)
        if name == "isinstance":
            return {id(node.func)} | {id(n) for n in nodes_of(node.args[1])}
        if name == "cls" and owner:
            self.escape(owner)
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "__init__"
            and isinstance(node.func.value, ast.Name)
        ):
            self.escape(node.func.value.id)
        self.events.append((node, frame, function, owner))
        return {id(node.func)}

    def called(self, node: ast.Call, frame: ModelFrame, function: ast.FunctionDef, owner: str | None) -> list[str]:
        """What a call may come to."""
        if isinstance(node.func, ast.Name):
            return self.owners(node.func.id)
        if isinstance(node.func, ast.Attribute):
            return self.constructors(node.func, owner) if node.func.attr == "__init__" else [f".{node.func.attr}"]
        if is_call_of_entry(node) and node.func.value.id in self.tables:
            rows = self.tables[node.func.value.id].tree.value.values
            return [name for row in rows if isinstance(row, ast.Name) for name in self.owners(row.id)]
        return []

    def constructors(self, func: ast.Attribute, owner: str | None) -> list[str]:
        """The constructors that `super().__init__` stands for in a class."""
        own = self.facts.real.get(owner)
        if own is None or not isinstance(func.value, ast.Call):
            return []
        found = set()
        for cls in [cls for cls in self.facts.real.values() if own in cls.__mro__]:
            behind = cls.__mro__[cls.__mro__.index(own) + 1 :]
            found |= {base.__name__ for base in [b for b in behind if b.__name__ in self.callees][:1]}
        return sorted(found)

    # -- parameters ---------------------------------------------------------------------------------------------------

    def decided(self) -> dict[tuple[str | None, str], dict[str, Any]]:
        """{(class, function): {parameter: its one value}}."""
        found = {}
        for callee in self.callees.values():
            if callee.is_escaped or not callee.calls:
                continue
            for definition in callee.definitions:
                module, owner, function = definition
                values = {
                    one.arg: self.value(callee, definition, one.arg) for one in all_parameters(callee, definition)
                }
                known = {name: value[0] for name, value in values.items() if value is not None}
                found[owner, function.name] = {n: v for n, v in known.items() if n not in stored_anywhere(function)}
        return found

    def value(self, callee: Callee, definition: Definition, name: str) -> tuple | None:
        """The one value of a parameter as a tuple of one."""
        values = []
        for call, frame, function in callee.calls:
            given = argument(callee, definition, call, name)
            if given is None:
                return None
            if function is definition[2] and isinstance(given, ast.Name) and given.id == name:
                # It hands on what it was given.
                continue
            found = frame.constant(given) if given is not MISSING else default_of(definition[2], name)
            if found is None:
                return None
            values.append(found[0])
        return one_of(values) if values and isinstance(values[0], PLAIN) else None

    def without_unread(self) -> list[Piece]:
        """The pieces without the parameters that no function of a name reads, and without what is given for them."""
        gone_parameters: dict[int, set[str]] = {}
        gone_arguments: dict[int, list] = {}
        for callee in self.callees.values():
            if callee.is_escaped or callee.is_shared or not callee.calls:
                continue
            for parameter in self.unread(callee):
                first = callee.definitions[0]
                given = [(call, argument(callee, first, call, parameter), frame) for call, frame, _ in callee.calls]
                if not all(one is not None and (one is MISSING or is_idle(one, frame)) for _, one, frame in given):
                    continue
                for definition in callee.definitions:
                    gone_parameters.setdefault(id(definition[2]), set()).add(parameter)
                for call, one, _ in given:
                    if one is not MISSING:
                        gone_arguments.setdefault(id(call), []).append(one)
        return [without(piece, gone_parameters, gone_arguments) for piece in self.pieces]

    def unread(self, callee: Callee) -> list[str]:
        """The parameters that none of the functions reads, in the same place in all of them."""
        first = [one.arg for one in all_parameters(callee, callee.definitions[0])]
        places = {tuple(one.arg for one in all_parameters(callee, d)) for d in callee.definitions}
        if len(places) > 1 or any(d[2].args.vararg for d in callee.definitions):
            return []
        read = {n.id for d in callee.definitions for n in nodes_of(d[2], ast.Name)}
        return [name for name in first if name not in read]


def is_idle(node: ast.expr, frame: ModelFrame) -> bool:
    """Whether to make a value does nothing else."""
    return is_path(node) or frame.constant(node) is not None


MISSING = ast.Constant("missing")


def annotations(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for one in nodes_of(function, ast.arg) + nodes_of(function, ast.AnnAssign):
        if one.annotation is not None:
            yield one.annotation
    for one in nodes_of(function, ast.FunctionDef):
        yield from [one.returns] if one.returns is not None else []
        yield from one.decorator_list


def all_parameters(callee: Callee, definition: Definition) -> list[ast.arg]:
    return [*callee.parameters(definition), *definition[2].args.kwonlyargs]


def argument(callee: Callee, definition: Definition, call: ast.Call, name: str) -> ast.expr | None:
    """What a call gives for a parameter; MISSING where it gives nothing, None where that cannot be told."""
    for one in call.keywords:
        if one.arg == name:
            return one.value
    places = [one.arg for one in callee.parameters(definition)]
    place = places.index(name) if name in places else len(call.args)
    starred = next((i for i, one in enumerate(call.args) if isinstance(one, ast.Starred)), len(call.args))
    if place < starred:
        return call.args[place]
    known = starred == len(call.args) and all(one.arg is not None for one in call.keywords)
    return MISSING if known else None


def default_of(function: ast.FunctionDef, name: str) -> tuple | None:
    """The constant that a parameter has where none is given, as a tuple of one."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    pairs = list(zip(plain[::-1], arguments.defaults[::-1], strict=False))
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    value = next((default for one, default in pairs if one.arg == name), None)
    return (value.value,) if isinstance(value, ast.Constant) else None


def without(piece: Piece, parameters: dict[int, set[str]], arguments: dict[int, list]) -> Piece:
    """A piece without some parameters of its functions and some arguments of its calls."""
    found = [node for node in callers_and_called(piece) if id(node) in parameters or id(node) in arguments]
    if not found:
        return piece
    text, edits = Text(piece.text, piece.tree), []
    for node in found:
        if id(node) in parameters:
            last = node.lineno - 1 + len(text.head(node))
            new = signature(text, node, parameters[id(node)])
            edits.append(((node.lineno, 0), (last, len(text.bytes[last - 1])), new))
        else:
            edits += [(*place, MARK) for place in places_of(node, {id(one) for one in arguments[id(node)]})]
    return changed_to(piece, edited(text, edits))


def places_of(call: ast.Call, gone: set[int]) -> Iterator[tuple[tuple, tuple]]:
    """From where to where a call is to be cut to lose some of its arguments."""
    items = [(one, id(one)) for one in call.args] + [(one, id(one.value)) for one in call.keywords]
    items = sorted(items, key=lambda item: (item[0].lineno, item[0].col_offset))
    kept = [index for index, (_, key) in enumerate(items) if key not in gone]
    starts = [(one.lineno, one.col_offset) for one, _ in items]
    stops = [(one.end_lineno, one.end_col_offset) for one, _ in items]
    if not kept:
        yield (call.func.end_lineno, call.func.end_col_offset + 1), (call.end_lineno, call.end_col_offset - 1)
        return
    if kept[0]:
        yield starts[0], starts[kept[0]]
    for index in range(kept[0], len(items)):
        if index not in kept:
            yield stops[index - 1], stops[index]


def edited(text: Text, edits: list[tuple]) -> str:
    """The text with the places (start, end) replaced, its statements as the formatter would have them."""
    ends = list(accumulate((len(line) + 1 for line in text.bytes), initial=0))
    places = sorted((ends[start[0] - 1] + start[1], ends[stop[0] - 1] + stop[1], new) for start, stop, new in edits)
    # What stands in something else that goes is gone with it.
    places = [one for i, one in enumerate(places) if not any(other[1] > one[0] for other in places[:i])]
    data = b"\n".join(text.bytes)
    for start, stop, new in reversed(places):
        data = data[:start] + new.encode() + data[stop:]
    lines = data.decode().split("\n")
    marked = {index for index, line in enumerate(lines) if MARK in line}
    lines = [line.replace(MARK, "") for line in lines]
    regions = [region_of(node) for node in nodes_of(ast.parse("\n".join(lines))) if isinstance(node, ast.stmt)]
    for first, last in sorted(set(regions), reverse=True):
        if last - first > 1 and marked & set(range(first, last)):
            lines[first:last] = shortened(lines[first:last])
    return "\n".join(lines)


def shortened(lines: list[str]) -> list[str]:
    """A statement that has lost some of its arguments: on one line where it fits now."""
    if not lines[-2].rstrip().endswith(","):
        return refit(lines)
    whole = refit([*lines[:-2], lines[-2].rstrip()[:-1], lines[-1]])
    return whole if len(whole) == 1 else lines


def region_of(stmt: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, of one with a body those above it."""
    body = getattr(stmt, "body", None)
    return stmt.lineno - 1, stmt.end_lineno if body is None else stmt.lineno


def signature(text: Text, function: ast.FunctionDef, gone: set[str]) -> str:
    """The line `def name(...):` without some parameters, or the lines that the formatter makes of it."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    parts = [parameter(text, one, default) for one, default in zip(plain, defaults, strict=True) if one.arg not in gone]
    kwonly = [pair for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if pair[0].arg not in gone]
    if arguments.vararg or kwonly:
        parts.append(f"*{text.one_line(arguments.vararg)}" if arguments.vararg else "*")
    parts += [parameter(text, one, default) for one, default in kwonly]
    if arguments.kwarg:
        parts.append(f"**{text.one_line(arguments.kwarg)}")
    margin = " " * function.col_offset
    head = f"{margin}def {function.name}("
    tail = ")" + (f" -> {text.one_line(function.returns)}" if function.returns else "") + ":"
    inside = ", ".join(parts)
    if len(head + inside + tail) <= WIDTH:
        return head + inside + tail
    if len(f"{margin}    {inside}") <= WIDTH:
        return "\n".join([head, f"{margin}    {inside}", margin + tail])
    return "\n".join([head, *(f"{margin}    {part}," for part in parts), margin + tail])


def parameter(text: Text, one: ast.arg, default: ast.expr | None) -> str:
    written = text.one_line(one)
    if default is None:
        return written
    return f"{written} = {text.one_line(default)}" if one.annotation else f"{written}={text.one_line(default)}"
