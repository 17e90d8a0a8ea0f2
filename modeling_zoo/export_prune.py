"""Which statements of the two packages the model of one config needs. Never shipped.

Concepts are found through tables, word -> class. A table loses the rows whose word the config has not, and what nothing
reaches any more is left out. What the config may still say is judged when a model is built (platform_export.py).
"""

import ast
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from transformers import DynamicCache, StaticCache

from configuration_zoo import ZooConfig, vocabulary
from configuration_zoo.field_settings import described

from .export_config_code import nodes_of
from .export_join import WIDTH, resolve
from .export_source import AUTO_MAP, Piece, changed_to, sources
from .platform_export import words_in, words_of

MODEL = "modeling_zoo"
LEFT_OUT = "LEFT_OUT"
Row = tuple[ast.expr | None, ast.expr]


@cache
def known_words() -> frozenset[str]:
    """Every word that a field of the config can have, every derived one, and the fields that are keys of a table."""
    names = {field.name for field in fields(ZooConfig)}
    words = {key for key in all_keys() if key in names}
    words |= set(words_in([value for name, value in vars(vocabulary).items() if name.isupper()]))
    for field in described(ZooConfig).values():
        words |= set(choices(field.metadata.get("kind")))
    return frozenset(words | {key for key, _ in string_rows("MIXERS")} | {key for key, _ in string_rows("BLOCKS")})


def choices(kind: Any) -> Iterator[str]:
    """The words that a kind of field, or of one of its parts, allows."""
    if isinstance(kind, dict | list | tuple):
        for part in kind.values() if isinstance(kind, dict) else kind:
            yield from choices(part)
    elif is_dataclass(kind):
        yield from words_in(getattr(kind, "names", ()))
        for part in vars(kind).values():
            yield from choices(part)


def is_word(node: ast.AST | None) -> bool:
    """Whether an expression is a string that is written out."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def all_keys() -> set[str]:
    """The words that are keys of a table of the model."""
    pieces = [piece for source in sources().values() if source.package == MODEL for piece in source.pieces]
    return {key.value for piece in pieces for key, _ in rows_of(piece) if is_word(key)}


def string_rows(name: str) -> Iterator[tuple[str, ast.expr]]:
    """The rows of a table that have a word as their key."""
    for source in sources().values():
        for piece in source.pieces:
            if piece.defines == (name,):
                for key, value in rows_of(piece):
                    if is_word(key):
                        yield key.value, value


def rows_of(piece: Piece) -> list[Row]:
    """The rows of a table: a dict at the top of a file some of whose values are names."""
    value = getattr(piece.tree, "value", None)
    if not isinstance(piece.tree, ast.Assign | ast.AnnAssign) or not isinstance(value, ast.Dict):
        return []
    return list(zip(value.keys, value.values, strict=True))


def cache_layers(config: ZooConfig) -> frozenset[str]:
    """transformers' classes of the layers that caches of such a model have, by name."""
    caches = DynamicCache(), DynamicCache(config=config), StaticCache(config=config, max_cache_len=8)
    return frozenset(type(layer).__name__ for one in caches for layer in one.layers) | {"DynamicLayer"}


def pieces_for(config: ZooConfig) -> tuple[Piece, ...]:
    """The statements of the model's package that a model of this config needs, tables without their other rows."""
    words = {word for _, word in words_of(config)} | set(words_of_recurrences(config))
    return needed(frozenset(words) & known_words(), cache_layers(config))


def words_of_recurrences(config: ZooConfig) -> Iterator[str]:
    """What the settings of each layer's recurrence say, those that its kind has and the config does not spell out."""
    for index, kind in enumerate(config.recurrent_mixers):
        if kind is not None:
            yield from words_in(vars(config.per_layer_config[index].linear_settings(index)))


@cache
def needed(words: frozenset[str], layers: frozenset[str]) -> tuple[Piece, ...]:
    """The same, for the words of a config and the layers of its caches."""
    return Dependencies(words, layers).run()


class Dependencies:
    """One walk from the classes that a folder offers to all they need."""

    def __init__(self, words: frozenset[str], layers: frozenset[str]):
        self.words, self.layers, self.files = set(words), layers, sources()
        self.own = {name: source.pieces for name, source in self.files.items() if source.package == MODEL}
        self.defined = {(name, word): p for name, pieces in self.own.items() for p in pieces for word in p.defines}
        self.reached: dict[int, Piece] = {}
        self.literal = literal_keys()

    def run(self) -> tuple[Piece, ...]:
        waiting, words = [self.defined[MODEL, name] for name in front()], None
        while waiting or words != self.words:
            words = set(self.words)
            while waiting:
                self.add(waiting.pop(), waiting)
            # Rows count once their word is in the row of another table, or their key is a class that has been reached.
            for piece in list(self.reached.values()):
                waiting += [one for one in self.targets(piece, self.needs(piece)) if id(one) not in self.reached]
        kept = [piece for pieces in self.own.values() for piece in pieces if id(piece) in self.reached]
        return tuple(self.said(piece) for piece in kept)

    def add(self, piece: Piece, waiting: list[Piece]) -> None:
        if id(piece) in self.reached:
            return
        self.reached[id(piece)] = piece
        # What acts when its file is read goes with what its file defines.
        waiting += [other for other in self.own[piece.module] if not other.defines]
        waiting += self.targets(piece, self.needs(piece))

    def targets(self, piece: Piece, needs: Iterable[str]) -> list[Piece]:
        found = [resolve(self.files, piece.module, name) for name in needs]
        return [self.defined[where] for where in found if isinstance(where, tuple) and where in self.defined]

    def needs(self, piece: Piece) -> set[str]:
        """The names a piece needs without the rows it loses; the words in the rows it keeps are looked up elsewhere."""
        names = set(piece.needs)
        if rows := rows_of(piece):
            kept = [row for row in rows if self.keeps(piece, row)]
            names -= set().union(*(names_in(row) for row in rows if row not in kept))
            names |= set().union(*(names_in(row) for row in kept))
            self.words |= {one.value for _, value in kept for one in nodes_of(value) if is_word(one)}
        return names

    def keeps(self, piece: Piece, row: Row) -> bool:
        """Whether a row of a table stays: its word is one of the config's, its class one that was reached."""
        key = row[0]
        if is_word(key):
            in_code = (piece.defines[0], key.value) in self.literal
            return in_code or key.value in self.words or key.value not in known_words()
        if isinstance(key, ast.Name):
            found = resolve(self.files, piece.module, key.id)
            if isinstance(found, tuple):
                return id(self.defined.get(found)) in self.reached
            return not key.id.endswith("Layer") or key.id in self.layers
        return True

    def said(self, piece: Piece) -> Piece:
        """A piece as it is written: tables without the rows that are gone, and which words those were."""
        if piece.defines == (LEFT_OUT,):
            text = piece.text.replace("frozenset()", literal_set(self.left_out()))
            return changed_to(piece, text)
        gone = [row for row in rows_of(piece) if not self.keeps(piece, row)]
        return changed_to(piece, without(piece, gone)) if gone else piece

    def left_out(self) -> set[str]:
        """The words of the rows that are gone."""
        rows = [(piece, row) for piece in self.reached.values() for row in rows_of(piece)]
        return {row[0].value for piece, row in rows if is_word(row[0]) and not self.keeps(piece, row)} - self.words


def front() -> list[str]:
    """The classes of the model that Auto classes find."""
    return [place.partition(".")[2] for place in AUTO_MAP.values() if place.startswith(f"{MODEL}.")]


@cache
def literal_keys() -> frozenset[tuple[str, str]]:
    """(table, word) wherever code of the model looks up a word that it spells out."""
    pieces = [piece for source in sources().values() if source.package == MODEL for piece in source.pieces]
    asked = [node for piece in pieces for node in nodes_of(piece.tree, ast.Subscript)]
    named = [node for node in asked if isinstance(node.value, ast.Name) and is_word(node.slice)]
    return frozenset((node.value.id, node.slice.value) for node in named)


def names_in(row: Row) -> set[str]:
    """The names that a row reads."""
    return {node.id for part in row if part is not None for node in nodes_of(part, ast.Name)}


def literal_set(words: set[str]) -> str:
    """`frozenset(("a b " "c").split())` as the formatter writes it at the end of a line of its own."""
    if not words:
        return "frozenset()"
    lines = textwrap.wrap(" ".join(sorted(words)), WIDTH - 12, break_on_hyphens=False)
    if len(lines) == 1:
        one_line = f'frozenset("{lines[0]}".split())'
        fits = len(f"LEFT_OUT: frozenset[str] = {one_line}") <= WIDTH
        return one_line if fits else f'frozenset(\n    "{lines[0]}".split()\n)'
    inside = "".join(f'        "{line} "\n' for line in lines)
    return f"frozenset(\n    (\n{inside}    ).split()\n)"


def without(piece: Piece, gone: list[Row]) -> str:
    """The text of a table without some of its rows, in the form that the formatter gives it."""
    left = [row for row in rows_of(piece) if row not in gone]
    lines, value = piece.text.split("\n"), piece.tree.value
    head = lines[value.lineno - 1][: value.col_offset]
    above = lines[: value.lineno - 1]
    if not left:
        return "\n".join([*above, head + "{}"])
    if len({key.lineno if key is not None else entry.lineno for key, entry in rows_of(piece)}) < len(rows_of(piece)):
        # Several rows a line.
        texts = [row_text(piece.text, row) for row in left]
        line = f"{head}{{{', '.join(texts)}}}"
        if len(line) > WIDTH:
            line = "\n".join([head + "{", *(f"    {text}," for text in texts), "}"])
        return "\n".join([*above, line])
    kept, start = [], value.lineno
    for key, entry in rows_of(piece):
        if (key, entry) in left:
            kept += lines[start : entry.end_lineno]
        start = entry.end_lineno
    return "\n".join([*above, head + "{", *kept, *lines[value.end_lineno - 1 :]])


def row_text(text: str, row: Row) -> str:
    key, value = row
    written = ast.get_source_segment(text, value)
    return f"**{written}" if key is None else f"{ast.get_source_segment(text, key)}: {written}"
