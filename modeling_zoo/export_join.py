"""Pieces of source as one file that reads from top to bottom: imports, operations, caches, concepts, blocks, the model.

Never shipped.
"""

import ast
import sys

from .export_source import Binding, Piece, Source

WIDTH = 120
# The order of rooms, by the first word of a file's name; a file still stands behind those it imports from.
ROOMS = tuple("ops cache norms embeddings position mixer attention recurrent mlp block train platform".split())


def reading_order(sources: dict[str, Source], package: str) -> list[str]:
    """The files of a package, each behind those it imports from, rooms in their order."""

    def rank(name: str) -> tuple:
        room = name.partition("_")[0]
        return (ROOMS.index(room) if room in ROOMS else len(ROOMS), name)

    own = {name: source for name, source in sources.items() if source.package == package}
    before = {name: {b.neighbour for b in source.imports.values()} & own.keys() for name, source in own.items()}
    order = []
    while before:
        ready = [name for name, needed in before.items() if needed <= set(order)]
        order.append(min(ready, key=rank))
        del before[order[-1]]
    return order


def resolve(sources: dict[str, Source], module: str, name: str) -> tuple[str, str] | Binding | None:
    """What a name read in a file is: (file, name) of a piece, an import from another library, or None (a builtin)."""
    if any(name in piece.defines for piece in sources[module].pieces):
        return module, name
    binding = sources[module].imports.get(name)
    if binding is None or binding.neighbour is None:
        return binding
    return resolve(sources, binding.neighbour, binding.name)


def import_lines(bindings: set[Binding]) -> list[str]:
    """Sections of imports as the formatter and isort write them: the standard library, others, neighbours."""
    sections = ([], [], [])
    # A name that a library has in several places comes from the one with the shortest name.
    shortest = {b.alias: b for b in sorted(bindings, key=lambda b: (-len(b.module), b.module))}
    for binding in shortest.values():
        top = binding.module.split(".")[0]
        sections[2 if not top else 0 if top in sys.stdlib_module_names else 1].append(binding)
    text = []
    for section in sections:
        lines = [line for group in (plain_imports(section), from_imports(section)) for line in group]
        text += ([""] if text and lines else []) + lines
    return text


def plain_imports(bindings: list[Binding]) -> list[str]:
    named = sorted((b.module, b.alias) for b in bindings if b.name is None)
    return [f"import {module}" + (f" as {alias}" if alias != module else "") for module, alias in named]


def from_imports(bindings: list[Binding]) -> list[str]:
    lines, modules = [], {}
    for binding in bindings:
        if binding.name is not None:
            renamed = binding.alias if binding.alias != binding.name else ""
            modules.setdefault((binding.module, renamed), set()).add(binding.name)
    for (module, renamed), names in sorted(modules.items()):
        ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
        line = f"from {module} import {', '.join(ordered)}" + (f" as {renamed}" if renamed else "")
        if len(line) > WIDTH:
            lines += [f"from {module} import (", *(f"    {name}," for name in ordered), ")"]
        else:
            lines.append(line)
    return lines


def is_block(piece: Piece) -> bool:
    """Whether two blank lines stand around it."""
    return isinstance(piece.tree, ast.FunctionDef | ast.ClassDef | ast.If | ast.Try)


def blank_lines(before: Piece, piece: Piece) -> int:
    if is_block(before) or is_block(piece):
        return 2
    return min(piece.gap, 2) if piece.index == before.index + 1 else 1


def heading(source: Source, whole: bool) -> list[str]:
    """What a file of the package says of itself, above what comes from it; its first paragraph where that is not the
    `whole` file."""
    rule, says = f"# -- {source.name} ", source.docstring if whole else source.docstring.split("\n\n")[0]
    return [rule + "-" * (WIDTH - 2 - len(rule)), *(f"# {line}".rstrip() for line in says.split("\n"))]


def joined(docstring: str, bindings: set[Binding], pieces: list[Piece], sources: dict[str, Source], whole: bool) -> str:
    """The text of a file; `whole`: it has every piece of every source."""
    lines = [f'"""{docstring}"""', "", *import_lines(bindings)]
    for before, piece in zip([None, *pieces], pieces, strict=False):
        if before is None or before.module != piece.module:
            lines += ["", "", *heading(sources[piece.module], whole)]
            count = 2 if is_block(piece) else 1
        else:
            count = blank_lines(before, piece)
        lines += [""] * count + piece.text.split("\n")
    return "\n".join(lines) + "\n"
