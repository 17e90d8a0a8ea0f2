"""`modeling_zoo.py` of a model folder as it would be written for that model alone: what its config decides is gone.

Never shipped. Decided branches are taken, attributes with one value for all and what nothing reads or calls are left
out, again and again until nothing changes (facts: export_model_facts.py).
"""

import ast
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer, StaticLayer

from configuration_zoo import ZooConfig

from .export_config_code import Kept, loaded, nodes_of
from .export_config_fields import Plan, planned, table_lines
from .export_config_fold import Folder
from .export_config_text import Text, first_line
from .export_config_worlds import Open, Present
from .export_model_calls import Calls
from .export_model_facts import Facts, paired, words_in
from .export_model_values import ModelFrame, is_ours, is_path
from .export_model_worlds import layer_worlds
from .export_prune import front, pieces_for
from .export_source import Piece, changed_to

# The table of the folder's code by which it refuses other values (platform_export.py).
DECIDED = "DECIDED"
# What other libraries read on a module of ours.
READ_BY_OTHERS = {"is_causal", "sliding_window", "scaling", "config", "gradient_checkpointing", "sinks", "softcap"}
# Files whose methods are there for others to call, and that which judges other configs than its own.
FOR_OTHERS, JUDGE = ("modeling_zoo", "platform"), "platform_export"


@cache
def names_of_others() -> frozenset[str]:
    """The methods that torch and transformers call on what they are given."""
    classes = (torch.Tensor, nn.Module, PreTrainedConfig, PreTrainedModel, GenerationMixin, DynamicCache)
    return frozenset(
        name for cls in (*classes, DynamicLayer, StaticLayer, LinearAttentionLayer, dict) for name in dir(cls)
    )


class ModelFolder(Folder):
    """One function of the model."""

    def __init__(self, text: Text, function: ast.FunctionDef, frame: ModelFrame, unread: set[str]):
        super().__init__(text, function)
        self.start, self.unread, self.read = frame, unread, loaded(function)

    def frame(self, spaces: list[dict], opened: set[str]) -> ModelFrame:
        return self.start.like(spaces, set(self.start.opened))

    def folded(self, spaces: list[dict]) -> list[str] | None:
        lines = super().folded(spaces)
        # One blank line where a statement and a function in it both ask for it.
        return lines and [line for line, before in zip(lines, [None, *lines], strict=False) if line or before]

    def body(self, statements: list[ast.stmt], frame: ModelFrame, shift: int) -> tuple[list[Kept], bool]:
        kept, ended = super().body(statements, frame, shift)
        if kept and not kept[0].lines[0]:
            kept[0].lines = kept[0].lines[1:]
        return kept, ended

    def statement(self, stmt: ast.stmt, frame: ModelFrame, shift: int) -> tuple[list[Kept], bool]:
        kept, ended = self.decided(stmt, frame, shift)
        if isinstance(stmt, ast.Assign):
            # Of several names at once, too.
            frame.names_one(stmt)
        above = first_line(stmt) - 2 - len(self.text.comments(stmt, shift))
        if kept and not self.text.lines[above].strip() and kept[0].lines[0]:
            kept[0].lines = ["", *kept[0].lines]
        return kept, ended

    def decided(self, stmt: ast.stmt, frame: ModelFrame, shift: int) -> tuple[list[Kept], bool]:
        if isinstance(stmt, ast.Assign) and len(stmt.targets) == 1:
            pairs = paired(stmt.targets[0], stmt.value)
            kept = [pair for pair in pairs if not self.is_unread(*pair, frame)]
            if not kept:
                return [], False
            if len(kept) < len(pairs):
                return [self.rewritten(stmt, kept, shift)], False
        if isinstance(stmt, ast.Return) and self.answers():
            return [self.simple(stmt, frame, shift)], True
        if frame.place.is_idle(stmt):
            return [], False
        return super().statement(stmt, frame, shift)

    def is_unread(self, target: ast.expr, value: ast.expr | None, frame: ModelFrame) -> bool:
        """Whether a statement sets what nothing reads to what is there without it."""
        if isinstance(target, ast.Attribute):
            unread = target.attr in self.unread
        else:
            unread = isinstance(target, ast.Name) and target.id not in self.read
        if value is None or not unread:
            return isinstance(value, ast.Name) and isinstance(target, ast.Name) and value.id == target.id
        return frame.constant(value) is not None or isinstance(target, ast.Name) and is_path(value)

    def rewritten(self, stmt: ast.Assign, kept: list[tuple], shift: int) -> Kept:
        targets, values = (", ".join(self.text.one_line(one) for one in part) for part in zip(*kept, strict=True))
        reads = {n.id for _, value in kept for n in nodes_of(value, ast.Name)}
        return Kept([*self.text.comments(stmt, shift), f"{' ' * (stmt.col_offset - shift)}{targets} = {values}"], reads)


class Program:
    """The statements of a folder's model."""

    def __init__(self, pieces: tuple[Piece, ...], layers: list):
        self.pieces, self.layers = list(pieces), layers
        self.facts = Facts(self.pieces, layers)

    def run(self) -> tuple[Piece, ...]:
        while True:
            before = [piece.text for piece in self.pieces]
            self.facts = Facts(self.pieces, self.layers, self.facts)
            calls = Calls(self.facts, self.pieces, self.is_for_others)
            self.facts.parameters, unread = calls.decided(), self.unread_attributes()
            self.pieces = calls.without_unread()
            self.pieces = [self.folded_again(piece, unread) for piece in self.pieces]
            self.pieces = self.reached(self.without_uncalled())
            if before == [piece.text for piece in self.pieces]:
                return tuple(self.pieces)

    def folded_again(self, piece: Piece, unread: set[str]) -> Piece:
        """`folded`, where something is known now that was not the last time."""
        known = self.facts.snapshot(piece), sorted(words_in(piece) & unread)
        if getattr(piece, "folded_with", None) == known:
            return piece
        found = self.folded(piece, unread)
        if found is piece:
            piece.folded_with = known
        return found

    def folded(self, piece: Piece, unread: set[str]) -> Piece:
        """A piece without what is decided in its functions."""
        if not isinstance(piece.tree, ast.FunctionDef | ast.ClassDef) or piece.module == JUDGE:
            return piece
        text, tree = text_of(piece)
        owner = tree.name if isinstance(tree, ast.ClassDef) else None
        functions = [tree] if owner is None else [f for f in tree.body if isinstance(f, ast.FunctionDef)]
        lines = list(text.lines)
        for function in reversed(functions):
            new = self.function(piece.module, owner, text, function, unread)
            if new is not None:
                lines[function.lineno - 1 : function.end_lineno] = new
        found = "\n".join(lines)
        return piece if found == piece.text else changed_to(piece, found)

    def function(
        self, module: str, owner: str | None, text: Text, function: ast.FunctionDef, unread: set[str]
    ) -> list[str] | None:
        """The lines of a function, None where nothing of it is decided."""
        frame = self.facts.frame(module, owner, function)
        lines = ModelFolder(text, function, frame, unread).folded(frame.spaces)
        margin = " " * function.col_offset
        if lines is None:
            lines = text.head(function) + (text.docstring(function) or [f"{margin}    pass"])
        if len(lines) == len(text.head(function)):
            lines.append(f"{margin}    pass")
        if lines == text.lines[function.lineno - 1 : function.end_lineno]:
            return None
        new = ast.parse("\n".join(line[function.col_offset :] for line in lines)).body[0]
        new.decorator_list = function.decorator_list
        return None if ast.dump(new) == ast.dump(function) else lines

    # -- what nothing reads or calls ----------------------------------------------------------------------------------

    def unread_attributes(self) -> set[str]:
        """The attributes that are set and not read."""
        return self.facts.stores.keys() - self.words() - READ_BY_OTHERS - names_of_others()

    def words(self) -> set[str]:
        """The names of attributes that are read, and the words in quotes."""
        return set().union(*(words_read(piece) for piece in self.pieces))

    def without_uncalled(self) -> list[Piece]:
        """Without methods that nothing names, unless they take the place of one that others call."""
        words = self.words() | names_of_others()
        ours = [not piece.module.startswith(FOR_OTHERS) for piece in self.pieces]
        return [self.without_methods(p, words) if own else p for p, own in zip(self.pieces, ours, strict=True)]

    def without_methods(self, piece: Piece, words: set[str]) -> Piece:
        if not isinstance(piece.tree, ast.ClassDef):
            return piece
        methods = [f for f in piece.tree.body if isinstance(f, ast.FunctionDef)]
        gone = [f for f in methods if f.name not in words and not f.name.startswith("__")]
        gone = [f for f in gone if not self.is_overriding(piece.tree.name, f.name)]
        if not gone:
            return piece
        text, _ = text_of(piece)
        lines = list(text.lines)
        for function in reversed(gone):
            first = min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1
            while lines[first - 1].strip().startswith("#") or not lines[first - 1].strip():
                first -= 1
            del lines[first : function.end_lineno]
        return changed_to(piece, "\n".join(lines))

    def is_for_others(self, piece: Piece, name: str) -> bool:
        """Whether others call a method of a class."""
        ours = not piece.module.startswith(FOR_OTHERS) and name not in names_of_others()
        return not ours or self.is_overriding(piece.tree.name, name)

    def is_overriding(self, owner: str, name: str) -> bool:
        """Whether a class that others know has a method of this name in the family."""
        family = [self.facts.real[one] for one in self.facts.family(owner)] if owner in self.facts.real else []
        return any(name in vars(base) for cls in family for base in cls.__mro__ if not is_ours(base))

    def reached(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces that the classes a folder offers come to."""
        defined = {name: piece for piece in pieces for name in piece.defines}
        waiting, found = [defined[name] for name in front()], set()
        while waiting:
            piece = waiting.pop()
            if id(piece) in found:
                continue
            found.add(id(piece))
            waiting += [other for other in pieces if other.module == piece.module and not other.defines]
            waiting += [defined[name] for name in piece.needs if name in defined]
        return [piece for piece in pieces if id(piece) in found]


def words_read(piece: Piece) -> set[str]:
    """The names of attributes that a piece reads, and its words in quotes."""
    if not hasattr(piece, "words_read"):
        piece.words_read = set()
        for node in nodes_of(piece.tree, ast.Attribute):
            if isinstance(node.ctx, ast.Load):
                piece.words_read.add(node.attr)
        for node in nodes_of(piece.tree, ast.Constant):
            if isinstance(node.value, str) and len(node.value) < 80:
                piece.words_read |= set(node.value.replace(".", " ").split())
    return piece.words_read


def text_of(piece: Piece) -> tuple[Text, ast.stmt]:
    """The text of a piece and its tree."""
    if not hasattr(piece, "as_text"):
        piece.as_text = Text(piece.text, piece.tree)
    return piece.as_text, piece.tree


def model_pieces(config: ZooConfig) -> tuple[Piece, ...]:
    """The statements of the model's half for a config, folded."""
    pieces, plan = pieces_for(config), planned(config, set())
    kinds = sorted(map(repr, set(zip(*plan.lists.values(), strict=True))))
    return program(Request(repr((plan.statuses, [*plan.lists], kinds)), pieces, config, plan))


@dataclass(frozen=True)
class Request:
    """What is asked for: the same statements for the same signature and statements to begin with."""

    signature: str
    pieces: tuple[Piece, ...]
    config: ZooConfig = field(compare=False)
    plan: Plan = field(compare=False)


@lru_cache(maxsize=32)
def program(request: Request) -> tuple[Piece, ...]:
    layers, read = layer_worlds(request.config, request.plan)
    found = Program(request.pieces, layers).run()
    values = {name: request.plan.statuses[name] for name in sorted(read & request.plan.statuses.keys())}
    fixed = {name: value for name, value in values.items() if value is not Open and not isinstance(value, Present)}
    return tuple(with_table(piece, fixed) if piece.defines == (DECIDED,) else piece for piece in found)


def with_table(piece: Piece, fixed: dict[str, Any]) -> Piece:
    """The piece that says for which values of fields the code is."""
    head = next(line for line in piece.text.split("\n") if line.startswith(DECIDED)).removesuffix("{}")
    return changed_to(piece, piece.text.replace(head + "{}", "\n".join(table_lines(fixed, 0, head, ""))))
