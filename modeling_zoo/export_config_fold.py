"""Takes out of a method what never acts in the configs that a folder serves: decided branches, checks that cannot fail.

Never shipped. Statements are run in every world (export_config_worlds.py); what changes nothing in any of them goes,
what is left keeps the text it was written in.
"""

import ast
from copy import copy

from .export_config_code import (
    Kept,
    Returned,
    changed,
    compiled,
    loaded,
    nodes_of,
    own_names,
    source,
    stored,
    unread_left_out,
)
from .export_config_text import Text
from .export_config_worlds import Open

MOST_WORLDS = 600
IGNORED = (TypeError, KeyError, IndexError, AttributeError)


class Frame:
    """The local names of a function in every world, and those that are open."""

    def __init__(self, spaces: list[dict], opened: set[str]):
        self.spaces, self.opened = spaces, opened

    def like(self, spaces: list[dict], opened: set[str]) -> "Frame":
        return type(self)(spaces, opened)

    def apart(self, opened: set[str] = frozenset()) -> "Frame":
        """The same for a block that may not be run, with more names that are open."""
        return self.like([dict(space) for space in self.spaces], self.opened | opened)

    def literal(self, node: ast.expr) -> str | None:
        """What is to be written in place of an expression, None: itself."""

    def chosen(self, node: ast.expr) -> ast.expr | None:
        """The part that an `and`, an `or` or a conditional expression comes to; None where that is open."""
        if isinstance(node, ast.BoolOp):
            # What decides it may stand before what is open.
            for operand in node.values:
                truth = self.truth(operand)
                if truth is isinstance(node.op, ast.Or):
                    return operand
                if truth is None:
                    break
        elif isinstance(node, ast.IfExp) and (truth := self.truth(node.test)) is not None:
            return node.body if truth else node.orelse

    def values(self, node: ast.expr) -> list | None:
        """What an expression is, world by world; None where it is open."""
        if (part := self.chosen(node)) is not None:
            return self.values(part)
        changing = (n for n in nodes_of(node) if isinstance(n, ast.NamedExpr | ast.Yield | ast.Await))
        if loaded(node) & self.opened or any(changing):
            return None
        code, found = compiled(source(node), True), []
        for space in self.spaces:
            try:
                found.append(eval(code, dict(space)))
            except IGNORED:
                continue
            except Exception:
                return None
        return found or None

    def truth(self, node: ast.expr) -> bool | None:
        """Whether a test holds, None where it is open or differs."""
        if isinstance(node, ast.BoolOp):
            return self._both(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand)
            return None if inner is None else not inner
        try:
            found = {bool(value) for value in self.values(node) or ()}
        except Open:
            return None
        return found.pop() if len(found) == 1 else None

    def _both(self, node: ast.BoolOp) -> bool | None:
        stops = isinstance(node.op, ast.Or)
        truths = [self.truth(operand) for operand in node.values]
        if stops in truths:
            return stops
        if None not in truths:
            return not stops
        try:
            found = {bool(value) for value in self.values(node) or ()}
        except Open:
            return None
        return found.pop() if len(found) == 1 else None

    def where(self, node: ast.expr, wanted: bool) -> "Frame":
        """The worlds in which a test may come out so."""
        if loaded(node) & self.opened:
            return self.like(self.spaces, set(self.opened))
        kept, code = [], compiled(source(node), True)
        for space in self.spaces:
            try:
                if bool(eval(code, dict(space))) is wanted:
                    kept.append(space)
            except IGNORED:
                continue
            except Exception:
                kept.append(space)
        return self.like([dict(space) for space in kept or self.spaces], set(self.opened))

    def runs(self, stmt: ast.stmt) -> str:
        """What a statement does: "nothing" (beside naming values), "returns", or "acts", which is also what is open."""
        if loaded(stmt) & self.opened or any(isinstance(n, ast.Raise) for n in [stmt]):
            return "acts"
        try:
            code, ends, after = compiled(source(stmt), False), set(), []
        except SyntaxError:
            # A `continue` of the loop it stands in.
            return "acts"
        for space in self.spaces:
            own = {**space, **{name: copy(space[name]) for name in changed(stmt) if name in space}}
            try:
                exec(code, own)
                # What can be gone through once is a list here, where it is gone through in every trial.
                own |= {name: list(own[name]) for name in stored(stmt) if hasattr(own.get(name), "__next__")}
                ends.add("nothing")
                after.append(own)
            except Returned:
                ends.add("returns")
            except IGNORED:
                continue
            except Exception:
                return "acts"
        if ends == {"nothing"}:
            self.spaces, self.opened = after, self.opened - stored(stmt)
            return "nothing"
        return "returns" if ends == {"returns"} else "acts"

    def names_one(self, stmt: ast.stmt) -> bool:
        """Whether a statement names one value that is decided although what it is made of is not."""
        if not isinstance(stmt, ast.Assign) or not isinstance(stmt.targets[0], ast.Name):
            return False
        found = self.values(stmt.value)
        if found is None or len(found) != len(self.spaces):
            return False
        for space, value in zip(self.spaces, found, strict=True):
            space[stmt.targets[0].id] = value
        self.opened = self.opened - {stmt.targets[0].id}
        return True

    def over(self, target: ast.expr, iterable: ast.expr) -> "Frame | None":
        """The worlds inside a loop, None where it runs over what is open."""
        if loaded(iterable) & self.opened:
            return None
        code = compiled(f"list({source(iterable)})", True)
        bind = compiled(f"{source(target)} = __entry", False)
        spaces = []
        for space in self.spaces:
            try:
                for entry in eval(code, dict(space)):
                    inner = {**space, "__entry": entry}
                    exec(bind, inner)
                    spaces.append(inner)
            except IGNORED:
                continue
            except Exception:
                return None
        return self.like(spaces, self.opened - stored(target)) if len(spaces) <= MOST_WORLDS else None

    def forget(self, names: set[str]) -> None:
        self.opened |= names


class Folder:
    """One function of a file."""

    def __init__(self, text: Text, function: ast.FunctionDef):
        self.text, self.function = text, function

    def folded(self, spaces: list[dict]) -> list[str] | None:
        """The lines of the function, None where nothing of it is left."""
        parameters = [a.arg for a in nodes_of(self.function.args, ast.arg)]
        spaces = [{**space, "__Returned": Returned} for space in spaces]
        frame = self.frame(spaces, set(parameters) - spaces[0].keys())
        kept, _ = self.body(self.function.body, frame, 0)
        kept = unread_left_out(kept)
        doc = self.text.docstring(self.function)
        if all(line.strip() in ("return", "return None") for one in kept for line in one.lines) and not self.answers():
            return None
        head = self.text.head(self.function)
        return head + doc + [line for one in kept for line in one.lines]

    def frame(self, spaces: list[dict], opened: set[str]) -> Frame:
        return Frame(spaces, opened)

    def answers(self) -> bool:
        """Whether the function gives something back, were it None."""
        return any(one.value is not None for one in nodes_of(self.function, ast.Return))

    def is_reached(self, spaces: list[dict]) -> bool:
        """Whether the function comes to an end in a config that is fixed so: what fails in all is called in none."""
        frame = Frame([{**space, "__Returned": Returned} for space in spaces], set())
        call = f"self.{self.function.name}"
        if any(source(d) == "property" for d in self.function.decorator_list):
            code = compiled(call, True)
        else:
            code = compiled(f"{call}({', '.join(a.arg for a in self.function.args.args[1:])})", True)
        for space in frame.spaces:
            try:
                eval(code, dict(space))
            except (*IGNORED, ValueError):
                continue
            except Exception:
                return True
            return True
        return False

    def body(self, statements: list[ast.stmt], frame: Frame, shift: int) -> tuple[list[Kept], bool]:
        """What stays of a block, `shift` columns further left, and whether nothing behind it is reached."""
        kept = []
        for stmt in statements:
            if isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Constant):
                continue
            one, ended = self.statement(stmt, frame, shift)
            kept += one
            if ended:
                return kept, True
        return kept, False

    def statement(self, stmt: ast.stmt, frame: Frame, shift: int) -> tuple[list[Kept], bool]:
        if isinstance(stmt, ast.If):
            return self.branch(stmt, frame, shift)
        if isinstance(stmt, ast.Return | ast.Raise):
            plain = isinstance(stmt, ast.Return) and (stmt.value is None or source(stmt.value) == "None")
            if plain and stmt is self.function.body[-1]:
                return [], True
            return [self.simple(stmt, frame, shift)], True
        if isinstance(stmt, ast.Pass):
            return [], False
        if isinstance(stmt, ast.Continue | ast.Break):
            return [Kept(self.text.moved(stmt, shift), set())], True
        if isinstance(stmt, ast.For):
            return self.loop(stmt, frame, shift)
        if isinstance(stmt, ast.While):
            frame.forget(stored(stmt))
            body, _ = self.body(stmt.body, frame.apart(), shift)
            head = self.text.header("while", self.text.one_line(stmt.test), stmt, shift)
            reads = loaded(stmt.test) | {name for one in body for name in one.reads}
            return [Kept([*head, *(line for one in body for line in one.lines)], reads)], False
        if isinstance(stmt, ast.Try) and not stmt.orelse and not stmt.finalbody:
            return [self.attempt(stmt, frame, shift)], False
        if isinstance(stmt, ast.FunctionDef | ast.With | ast.Try):
            function = isinstance(stmt, ast.FunctionDef)
            frame.forget(stored(stmt) | ({stmt.name} if function else set()))
            lines = self.text.moved(stmt, shift)
            return [Kept(["", *lines, ""] if function else lines, loaded(stmt))], False
        names = stored(stmt)
        one = self.simple(stmt, frame, shift)
        idle = frame.runs(stmt) == "nothing" or frame.names_one(stmt) or is_times_one(stmt, frame)
        if isinstance(stmt, ast.AugAssign) and idle and is_times_one(stmt, frame):
            return [], False
        if idle and not names:
            return [], False
        if idle:
            return [Kept(one.lines, one.reads, names)], False
        frame.forget(names)
        return [Kept(one.lines, one.reads, names if self.is_plain(stmt) else None)], False

    @staticmethod
    def is_plain(stmt: ast.stmt) -> bool:
        """Whether a statement only names a value: it goes where nothing reads the name."""
        return (
            isinstance(stmt, ast.Assign)
            and all(isinstance(t, ast.Name | ast.Tuple) for t in stmt.targets)
            and not any(isinstance(n, ast.Attribute | ast.Subscript) for t in stmt.targets for n in nodes_of(t))
        )

    def attempt(self, stmt: ast.Try, frame: Frame, shift: int) -> Kept:
        """A `try`, its blocks folded each by itself."""
        frame.forget(stored(stmt) | {handler.name for handler in stmt.handlers if handler.name})
        lines, reads = self.text.comments(stmt, shift), set()
        for part in [stmt, *stmt.handlers]:
            body, _ = self.body(part.body, frame.apart(), shift)
            lines += [self.text.lines[part.lineno - 1][shift:], *(line for one in body for line in one.lines)]
            reads |= {name for one in body for name in one.reads}
        return Kept(lines, reads | loaded(stmt))

    def branch(self, stmt: ast.If, frame: Frame, shift: int) -> tuple[list[Kept], bool]:
        truth = frame.truth(stmt.test)
        if truth is not None:
            return self.body(
                stmt.body if truth else stmt.orelse, frame, shift + (4 if truth else self.else_shift(stmt))
            )
        if not stored(stmt) & self.read_outside(stmt) and frame.runs(stmt) == "nothing":
            return [], False
        inside, outside = frame.where(stmt.test, True), frame.where(stmt.test, False)
        body, ended = self.body(stmt.body, inside, shift)
        orelse, other_ended = self.body(stmt.orelse, outside, shift)
        elsewhere = self.read_outside(stmt)
        body, orelse = unread_left_out(body, elsewhere), unread_left_out(orelse, elsewhere)
        frame.forget(stored(stmt))
        if ended and not stmt.orelse:
            frame.spaces = outside.spaces
        if not body and not orelse:
            return [], False
        test = self.text.expression(stmt.test, frame, True)
        reads = set(loaded(ast.parse(test, mode="eval")))
        reads |= {name for one in (*body, *orelse) for name in one.reads}
        margin = " " * (stmt.col_offset - shift)
        if not body:
            test, body, orelse = f"not ({test})" if " " in test else f"not {test}", orelse, []
        lines = self.text.comments(stmt, shift) + self.text.header("if", test, stmt, shift)
        lines += [line for one in body for line in one.lines]
        if orelse:
            chained = (
                len(stmt.orelse) == 1
                and isinstance(stmt.orelse[0], ast.If)
                and orelse[0].lines[0].startswith(f"{margin}if ")
            )
            rest = [line for one in orelse for line in one.lines]
            if self.text.is_elif(stmt) and chained:
                lines += [f"{margin}el{rest[0].lstrip()}", *rest[1:]]
            else:
                deeper = [f"    {line}" if self.text.is_elif(stmt) and line else line for line in rest]
                lines += [f"{margin}else:", *deeper]
        return [Kept(lines, reads)], ended and other_ended and bool(stmt.orelse)

    def read_outside(self, stmt: ast.stmt) -> set[str]:
        """The names that the function reads outside a statement."""
        if not hasattr(stmt, "names_outside"):
            inside = {id(node) for node in nodes_of(stmt)}
            inside |= own_names(self.function)
            nodes = [node for node in nodes_of(self.function, ast.Name) if id(node) not in inside]
            stmt.names_outside = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
        return stmt.names_outside

    def else_shift(self, stmt: ast.If) -> int:
        return 0 if self.text.is_elif(stmt) else 4

    def loop(self, stmt: ast.For, frame: Frame, shift: int) -> tuple[list[Kept], bool]:
        if not stored(stmt) & self.read_outside(stmt) and frame.runs(stmt) == "nothing":
            return [], False
        if rows := self.rows(stmt, frame):
            return self.without_rows(stmt, frame, shift, rows)
        inside = frame.over(stmt.target, stmt.iter)
        if inside is None:
            inside = frame.apart(stored(stmt.target))
        elif not inside.spaces:
            return [], False
        # What one turn names is there in the next.
        inside.forget(stored(stmt) - stored(stmt.target))
        body, _ = self.body(stmt.body, inside, shift)
        frame.forget(stored(stmt))
        elsewhere = self.read_outside(stmt)
        if all(one.lines[-1].strip() == "continue" or one.names and not one.names & elsewhere for one in body):
            return [], False
        head = self.text.comments(stmt, shift) + self.text.before_body(stmt, frame, shift)
        reads = loaded(stmt.iter) | {name for one in body for name in one.reads}
        return [Kept(head + [line for one in body for line in one.lines], reads)], False

    def rows(self, stmt: ast.For, frame: Frame) -> list[ast.expr]:
        """The rows of a written-out tuple for which a loop does nothing."""
        if not isinstance(stmt.iter, ast.Tuple | ast.List):
            return []
        idle = []
        for row in stmt.iter.elts:
            trial = frame.like(frame.apart().spaces, frame.opened - stored(stmt.target))
            turn = [ast.Assign([stmt.target], row), *stmt.body]
            if trial.runs(ast.fix_missing_locations(ast.If(ast.Constant(True), turn, []))) == "nothing":
                idle.append(row)
        return idle

    def without_rows(self, stmt: ast.For, frame: Frame, shift: int, idle: list) -> tuple[list[Kept], bool]:
        lines = self.text.without_rows(stmt, idle, shift)
        if lines is None:
            return [Kept(self.text.moved(stmt, shift), loaded(stmt))], False
        frame.forget(stored(stmt))
        reads = {n for s in stmt.body for n in loaded(s)} | {
            n for row in stmt.iter.elts if row not in idle for n in loaded(row)
        }
        return [Kept(lines, reads)], False

    def simple(self, stmt: ast.stmt, frame: Frame, shift: int) -> Kept:
        lines, reads = self.text.folded_statement(stmt, frame, shift)
        return Kept(self.text.comments(stmt, shift) + lines, reads)


def is_times_one(stmt: ast.stmt, frame: Frame) -> bool:
    """Whether a statement multiplies by one."""
    if not isinstance(stmt, ast.AugAssign) or not isinstance(stmt.op, ast.Mult):
        return False
    return all(value == 1 for value in frame.values(stmt.value) or [0])
