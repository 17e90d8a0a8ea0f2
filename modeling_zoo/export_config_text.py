"""The text of a file by its statements: moved to the left, with decided parts left out, as the formatter has it.

Never shipped.
"""

import ast
import re
from typing import Any

from .export_config_code import COMPREHENSIONS, nodes_of

WIDTH = 120
# Expressions in which nothing is taken out, and what else holds expressions.
KEPT_WHOLE = (*COMPREHENSIONS, ast.Lambda, ast.JoinedStr)
WITH_EXPRESSIONS = (ast.expr, ast.keyword)


class Text:
    """The source of one file, or of what `tree` is the tree of."""

    def __init__(self, source: str, tree: ast.AST | None = None):
        self.lines = source.split("\n")
        self.bytes = [line.encode() for line in self.lines]
        self.tree = ast.parse(source) if tree is None else tree

    def segment(self, node: ast.AST) -> str:
        """The text of a node."""
        first, last = node.lineno - 1, node.end_lineno - 1
        if first == last:
            return self.bytes[first][node.col_offset : node.end_col_offset].decode()
        parts = [
            self.bytes[first][node.col_offset :],
            *self.bytes[first + 1 : last],
            self.bytes[last][: node.end_col_offset],
        ]
        return b"\n".join(parts).decode()

    def one_line(self, node: ast.AST) -> str:
        return flat(self.segment(node).split("\n"), True) or " ".join(
            part.strip() for part in self.segment(node).split("\n")
        )

    def comments(self, stmt: ast.stmt, shift: int) -> list[str]:
        """The comments above a statement."""
        start = first_line(stmt) - 1
        first = start
        while first and self.lines[first - 1].strip().startswith("#"):
            first -= 1
        return [line[shift:] for line in self.lines[first:start]]

    def moved(self, stmt: ast.stmt, shift: int) -> list[str]:
        """A statement with its comments, further to the left."""
        lines = [line[shift:] if line.strip() else line for line in self.lines[first_line(stmt) - 1 : stmt.end_lineno]]
        if shift and not isinstance(stmt, ast.For | ast.If | ast.With | ast.Try | ast.FunctionDef | ast.While):
            lines = refit(lines)
        return self.comments(stmt, shift) + lines

    def head(self, function: ast.FunctionDef) -> list[str]:
        """Decorators, name and parameters of a function."""
        return self.lines[function.lineno - 1 : self._body_start(function)]

    def _body_start(self, function: ast.FunctionDef) -> int:
        line = function.lineno - 1
        while not self.lines[line].rstrip().endswith(":"):
            line += 1
        return line + 1

    def docstring(self, function: ast.FunctionDef) -> list[str]:
        first = function.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return self.lines[first.lineno - 1 : first.end_lineno]
        return []

    def header(self, word: str, test: str, stmt: ast.stmt, shift: int) -> list[str]:
        margin = " " * (stmt.col_offset - shift)
        line = f"{margin}{word} {test}:"
        if len(line) <= WIDTH:
            return [line]
        original = [line[shift:] for line in self.lines[stmt.lineno - 1 : stmt.body[0].lineno - 1]]
        original = [line for line in original if not line.strip().startswith("#")]
        original[0] = f"{margin}{word} " + original[0].lstrip().partition(" ")[2]
        return original

    def before_body(self, stmt: ast.For, frame: Any, shift: int) -> list[str]:
        """The line of a loop."""
        lines = [line[shift:] for line in self.lines[stmt.lineno - 1 : stmt.iter.end_lineno]]
        while not lines[-1].rstrip().endswith(":"):
            lines.append(self.lines[stmt.lineno - 1 + len(lines)][shift:])
        return refit(lines)

    def is_elif(self, stmt: ast.If) -> bool:
        """Whether what follows an `if` is an `elif`."""
        if len(stmt.orelse) != 1 or not isinstance(stmt.orelse[0], ast.If):
            return False
        return self.lines[stmt.orelse[0].lineno - 1].lstrip().startswith("elif ")

    # -- expressions ------------------------------------------------------------------------------------------------

    def expression(self, node: ast.expr, frame: Any, as_test: bool) -> str:
        """An expression on one line, without what is decided."""
        edits = []
        self.edits(node, frame, as_test, edits)
        return self.edited(node, edits)

    def edited(self, node: ast.AST, edits: list) -> str:
        text = self.segment(node).encode()
        for start, end, new in sorted(edits, reverse=True):
            base = self.offset(node, (node.lineno, node.col_offset))
            text = text[: self.offset(node, start) - base] + new.encode() + text[self.offset(node, end) - base :]
        lines = text.decode().split("\n")
        return flat(lines, True) or " ".join(line.strip() for line in lines)

    def offset(self, node: ast.AST, place: tuple[int, int]) -> int:
        line, column = place
        return sum(len(self.bytes[index]) + 1 for index in range(node.lineno - 1, line - 1)) + column

    def edits(self, node: ast.AST, frame: Any, as_test: bool, found: list) -> None:
        """Collects what to replace: (start, end, text)."""
        if isinstance(node, ast.expr) and (written := frame.literal(node)) is not None:
            found.append((*span(node), written))
            return
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
            if (value := constant(frame.values(node.value)) or for_each_layer(node.value, frame)) is not None:
                found.append((*span(node.value), value))
                return
        if isinstance(node, ast.Assign) and (value := for_each_layer(node.value, frame)) is not None:
            found.append((*span(node.value), value))
            return
        if isinstance(node, ast.IfExp):
            truth = frame.truth(node.test)
            if truth is not None:
                chosen = node.body if truth else node.orelse
                found.append((*span(node), self.expression(chosen, frame, as_test)))
                return
        if isinstance(node, ast.BoolOp) and as_test:
            stops = isinstance(node.op, ast.Or)
            kept = [operand for operand in node.values if frame.truth(operand) is not (not stops)]
            if kept and len(kept) < len(node.values):
                word = " or " if stops else " and "
                texts = [self.expression(operand, frame, True) for operand in kept]
                texts = [
                    f"({t})" if isinstance(k, ast.BoolOp) and len(kept) > 1 else t
                    for t, k in zip(texts, kept, strict=True)
                ]
                found.append((*span(node), word.join(texts)))
                return
        if isinstance(node, KEPT_WHOLE):
            return
        for field in node._fields:
            value = getattr(node, field, None)
            test = as_test and isinstance(node, ast.BoolOp) or field == "test"
            test = test or isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, WITH_EXPRESSIONS):
                    self.edits(child, frame, test, found)

    def folded_statement(self, stmt: ast.stmt, frame: Any, shift: int) -> tuple[list[str], set[str]]:
        """The lines of a simple statement without what is decided in it, and the names it reads."""
        lines = [line[shift:] for line in self.lines[stmt.lineno - 1 : stmt.end_lineno]]
        edits = []
        # A comment inside keeps a statement as it is.
        if not isinstance(stmt, ast.Raise) and not any("# " in line for line in lines):
            self.edits(stmt, frame, False, edits)
        if edits:
            text = self.edited(stmt, edits)
            if (new := laid_out(text, stmt.col_offset - shift)) is not None:
                return new, reads_of(text if text.startswith("return") else ast.parse(text))
        return (refit(lines) if shift else lines), reads_of(stmt)

    def without_rows(self, stmt: ast.For, idle: list, shift: int) -> list[str] | None:
        """A loop over a written-out tuple without some of its rows."""
        rest = [row for row in stmt.iter.elts if row not in idle]
        if not rest:
            return []
        body = [line[shift:] for line in self.lines[stmt.body[0].lineno - 1 : stmt.end_lineno]]
        margin = " " * (stmt.col_offset - shift)
        target = self.segment(stmt.target)
        entries = [self.one_line(row) for row in rest]
        comma = "," if len(entries) == 1 else ""
        line = f"{margin}for {target} in ({', '.join(entries)}{comma}):"
        if len(line) > WIDTH or len(rest) > 1 and stmt.iter.end_lineno > stmt.iter.lineno:
            head = [f"{margin}for {target} in (", *(f"{margin}    {entry}," for entry in entries), f"{margin}):"]
        else:
            head = [line]
        return self.comments(stmt, shift) + head + body


def laid_out(text: str, margin: int) -> list[str] | None:
    """A statement on one line, or with the arguments of its last call on lines of their own; None if neither fits."""
    space = " " * margin
    if len(space + text) <= WIDTH:
        return [space + text]
    call = next((n for n in ast.walk(in_function(text)) if isinstance(n, ast.Call) and ends(n, text)), None)
    if call is None or text.count("\n"):
        return None
    start = len(ast_text(text, call.func)) + 1
    head, inside = text[: start_of(text, call) + start], text[start_of(text, call) + start : -1]
    if len(space + head) > WIDTH:
        return None
    if len(f"{space}    {inside}") <= WIDTH:
        return [space + head, f"{space}    {inside}", f"{space})"]
    parts = [ast_text(text, one) for one in call.args]
    parts += [
        f"{one.arg}={ast_text(text, one.value)}" if one.arg else f"**{ast_text(text, one.value)}"
        for one in call.keywords
    ]
    lines = [f"{space}    {part}," for part in parts]
    return [space + head, *lines, f"{space})"] if all(len(line) <= WIDTH for line in lines) else None


BEFORE = "def f():\n "


def in_function(text: str) -> ast.AST:
    """The tree of a statement that may be a `return`."""
    return ast.parse(BEFORE + text)


def ast_text(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(BEFORE + text, node)


def start_of(text: str, node: ast.AST) -> int:
    return len((" " + text).encode()[: node.col_offset].decode()) - 1


def ends(node: ast.AST, text: str) -> bool:
    return node.end_lineno == 2 and node.end_col_offset == len((" " + text).encode())


def constant(values: list | None) -> str | None:
    """The literal of a value that is the same in every world, None for what is not written in a word."""
    if not values or any(type(one) is not type(values[0]) for one in values):
        return None
    first = values[0]
    if first is None or isinstance(first, bool | str):
        return literal(first) if all(one == first for one in values) else None
    return repr(first) if isinstance(first, list | dict) and not any(values) else None


def for_each_layer(node: ast.expr, frame: Any) -> str | None:
    """A list with the same word for each layer, as it is written; None for any other value."""
    if not isinstance(node, ast.ListComp | ast.BinOp | ast.List | ast.IfExp | ast.Name) or not (
        values := frame.values(node)
    ):
        return None
    counts = [space["self"].num_hidden_layers if "self" in space else None for space in frame.spaces]
    if len(values) != len(counts) or any(
        not isinstance(v, list) or len(v) != n for v, n in zip(values, counts, strict=True)
    ):
        return None
    words = {repr(word) for value in values for word in value}
    word = values[0][0] if len(words) == 1 else Ellipsis
    return f"[{literal(word)}] * self.num_hidden_layers" if word is None or isinstance(word, str) else None


def literal(value: Any) -> str:
    return '"' + value + '"' if isinstance(value, str) else repr(value)


def reads_of(node: ast.AST | str) -> set[str]:
    if isinstance(node, str):
        node = ast.parse(f"def f():\n    {node.strip()}")
    return {n.id for n in nodes_of(node, ast.Name) if isinstance(n.ctx, ast.Load)}


def span(node: ast.AST) -> tuple:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def first_line(stmt: ast.stmt) -> int:
    return min([stmt.lineno, *(d.lineno for d in getattr(stmt, "decorator_list", ()))])


PIECE = re.compile(r'^(f?)"((?:[^"\\]|\\.)*)"$')


def merged(lines: list[str]) -> list[str]:
    """Pieces of one string on lines of their own as one piece."""
    found = []
    for line in lines:
        before = PIECE.match(found[-1].strip()) if found else None
        here = PIECE.match(line.strip().rstrip(",")) if before else None
        if before and here and (before[1] == here[1] or "{" not in before[2] + here[2] or before[1] or here[1]):
            tail = "," if line.strip().endswith(",") else ""
            texts = [
                m[2] if m[1] or not (before[1] or here[1]) else m[2].replace("{", "{{").replace("}", "}}")
                for m in (before, here)
            ]
            margin = found[-1][: len(found[-1]) - len(found[-1].lstrip())]
            found[-1] = f'{margin}{before[1] or here[1]}"{"".join(texts)}"{tail}'
        else:
            found.append(line)
    return found


def flat(lines: list[str], inner: bool = False) -> str | None:
    """Lines as one, None where a comment or a comma at the end of a list keeps them apart."""
    if any(line.strip().startswith("#") for line in lines):
        return None
    lines = merged(lines)
    text = lines[0].rstrip()
    for line in lines[1:]:
        piece = line.strip()
        if piece[:1] in (")", "]", "}") and text.endswith(","):
            return None
        tight = text[-1:] in "([{" or piece[:1] in (")", "]", "}")
        text += piece if tight else f" {piece}"
    return text


def refit(lines: list[str]) -> list[str]:
    """A statement of several lines on as few as the formatter would give it."""
    if len(lines) < 2:
        return lines
    whole = flat(lines)
    if whole is not None and len(whole) <= WIDTH:
        return [whole]
    opens = lines[0].rstrip()[-1:] in "([{" and lines[-1].strip()[:1] in (")", "]", "}")
    if opens and len(lines) > 3:
        inside = flat(lines[1:-1])
        if inside is not None and len(inside) <= WIDTH:
            return [lines[0], inside, lines[-1]]
    return lines
