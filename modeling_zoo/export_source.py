"""The source of the two shipped packages as pieces: one for each statement at the top of a file, and what it needs.

Never shipped. A name means one thing in all files of a package (`tests/test_house.py`), so pieces can be joined.
"""

import ast
import symtable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import configuration_zoo

PACKAGES = (Path(configuration_zoo.__file__).parent, Path(__file__).parent)
# The two files of a folder, by the package each of them is made from.
TARGETS = tuple(package.name for package in PACKAGES)
# What transformers' Auto classes find in a folder.
AUTO_MAP = {
    "AutoConfig": "configuration_zoo.ZooConfig",
    "AutoModel": "modeling_zoo.ZooModel",
    "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM",
    "AutoModelForSequenceClassification": "modeling_zoo.ZooForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_zoo.ZooForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_zoo.ZooForQuestionAnswering",
}


@dataclass(frozen=True)
class Binding:
    """A name that an import brings: `from module import name as alias`, or `import module as alias`."""

    module: str
    name: str | None
    alias: str

    @property
    def neighbour(self) -> str | None:
        """The file of the two packages it comes from, None for another library."""
        if self.module.startswith("."):
            return self.module[1:]
        return self.module if self.module in TARGETS else None


@dataclass(eq=False)
class Piece:
    """One statement at the top of a file with the comments above it."""

    module: str
    index: int
    text: str
    # Blank lines between it and the piece before it in its file.
    gap: int
    tree: ast.stmt = field(init=False)
    defines: tuple[str, ...] = field(init=False)
    needs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        (self.tree,) = ast.parse(self.text).body
        table = symtable.symtable(self.text, self.module, "exec")
        self.defines, self.needs = tuple(defined(table)), frozenset(global_names(table))


@lru_cache(maxsize=8192)
def piece_of(module: str, index: int, text: str, gap: int) -> Piece:
    """A piece that has been read once for all models whose code has it; it stays as it is."""
    return Piece(module, index, text, gap)


def changed_to(piece: Piece, text: str) -> Piece:
    """A piece with another text."""
    return piece_of(piece.module, piece.index, text, piece.gap)


def defined(table: symtable.SymbolTable) -> list[str]:
    """The names that a statement at the top of a file binds."""
    symbols = [symbol for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()]
    return [symbol.get_name() for symbol in symbols]


def global_names(table: symtable.SymbolTable) -> set[str]:
    """The names that code reads from the top of its file, at any depth."""
    top = table.get_type() == "module"
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() or top}
    names = {name for name in names if not top or table.lookup(name).is_referenced()}
    if table.get_type() == "class":
        # `name = name` in the body of a class reads what stands at the top of the file.
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    return names.union(*(global_names(child) for child in table.get_children()))


@dataclass
class Source:
    """One file: its pieces and its imports, alias -> binding."""

    name: str
    package: str
    docstring: str
    pieces: list[Piece]
    imports: dict[str, Binding]


def read_source(path: Path) -> Source:
    """The pieces of one file."""
    text = path.read_text(encoding="utf-8")
    lines, pieces, imports, end, whole = text.splitlines(), [], {}, 0, ast.parse(text)
    for index, tree in enumerate(whole.body):
        start = min([tree.lineno, *(d.lineno for d in getattr(tree, "decorator_list", ()))]) - 1
        above = lines[end:start]
        gap = next((count for count, line in enumerate(above) if line.strip()), len(above))
        if isinstance(tree, ast.ImportFrom | ast.Import):
            for alias in tree.names:
                module = "." * tree.level + (tree.module or "") if isinstance(tree, ast.ImportFrom) else alias.name
                name = alias.name if isinstance(tree, ast.ImportFrom) else None
                imports[alias.asname or alias.name] = Binding(module, name, alias.asname or alias.name)
        elif not (isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)):
            pieces.append(Piece(path.stem, index, "\n".join(lines[end + gap : tree.end_lineno]), gap))
        end = tree.end_lineno
    return Source(path.stem, path.parent.name, ast.get_docstring(whole) or "", pieces, imports)


@cache
def sources() -> dict[str, Source]:
    """Every file of the two packages that the model or its config reaches, by name."""
    paths = {path.stem: path for package in PACKAGES for path in package.glob("*.py")}
    found, waiting = {}, list(TARGETS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = read_source(paths[name])
            waiting += [b.neighbour for b in found[name].imports.values() if b.neighbour]
    refuse_namesakes(found)
    return found


def refuse_namesakes(sources: dict[str, Source]) -> None:
    """Raises ValueError for a name that means two things in the files of a package, which cannot be joined then."""
    for package in TARGETS:
        meanings = {}
        for source in [source for source in sources.values() if source.package == package]:
            pieces = {name: piece for piece in source.pieces for name in piece.defines}
            own = {name: (source.name, piece.text) for name, piece in pieces.items()}
            for name, binding in source.imports.items():
                if binding.neighbour and binding.name != name:
                    raise ValueError(f"{source.name}.py imports {binding.name} as {name}: in one file both are one.")
                if binding.neighbour is None:
                    own[name] = (binding.module.split(".")[0], binding.name)
            for name, meaning in own.items():
                other = meanings.setdefault(name, meaning)
                if other != meaning and other[1] != meaning[1]:
                    raise ValueError(f"{name} is one thing in {other[0]}, another in {meaning[0]}: rename one.")
