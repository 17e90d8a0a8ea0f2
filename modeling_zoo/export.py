"""Writes the code of this package into a model folder, so that it loads anywhere with `trust_remote_code=True`.

Not shipped itself. A folder holds two files: `configuration_zoo.py` with what its model uses (export_config.py), and
`modeling_zoo.py`, joined from the files of the package (export_source.py, export_join.py).
"""

import os
from functools import cache
from pathlib import Path

from configuration_zoo import ZooConfig
from configuration_zoo.version import TRANSFORMERS

from .export_config import exported_configuration
from .export_join import joined, reading_order, resolve
from .export_model import model_pieces
from .export_prune import MODEL, pieces_for
from .export_source import AUTO_MAP, TARGETS, Binding, Piece, sources

FILES = tuple(f"{name}.py" for name in TARGETS)
DOCSTRING = """{says}

One of the two files that `zoo export` makes of zoo's packages: the files named in its headings, joined in the order in
which they are read. `zoo export FOLDER --check` says whether they are as they were made. {scope}
"""
# The last sentence of both files, by which a folder says how much it holds.
EVERYTHING = "They have every concept."
OWN = "They have what their\nmodel needs; `zoo export FOLDER --all` writes every concept."

# The first lines that run: below them stand imports that an older library has not.
OLDEST = tuple(map(int, TRANSFORMERS.split(".")))
GUARD = f"""import transformers

if tuple(map(int, transformers.__version__.split(".")[:2])) < {OLDEST}:
    raise ImportError(
        f"this model needs transformers {TRANSFORMERS} or newer, and {{transformers.__version__}} is installed: run "
        "`pip install --upgrade transformers`"
    )

"""


def code(config: ZooConfig | None = None) -> dict[str, str]:
    """{file name: text} of the two files for a model of this config, or with every concept; always the same for a
    version of the packages."""
    # Layers that differ in a field of their own, and subclasses of ZooConfig, have the whole configuration.
    is_one = config is not None and not config.is_heterogeneous and type(config) is ZooConfig
    pieces = None if config is None else model_pieces(config) if is_one else pieces_for(config)
    texts = dict(joined_code(pieces))
    if is_one:
        texts["configuration_zoo.py"] = exported_configuration(config, modeling=texts["modeling_zoo.py"])
    docstring, end, rest = texts["configuration_zoo.py"].partition('"""\n\n')
    return texts | {"configuration_zoo.py": docstring + end + GUARD + rest}


@cache
def joined_code(of_model: tuple[Piece, ...] | None) -> tuple[tuple[str, str], ...]:
    """(file name, text) of the two files, the model's from some of its statements."""
    texts, files = [], sources()
    for target in TARGETS:
        bindings, seen, kept = set(), set(), []
        pieces = [piece for name in reading_order(files, target) for piece in files[name].pieces]
        if of_model is not None and target == MODEL:
            place = {name: rank for rank, name in enumerate(reading_order(files, target))}
            pieces = sorted(of_model, key=lambda piece: (place[piece.module], piece.index))
        for piece in pieces:
            if piece.text in seen:
                # The same line in several files, such as a logger.
                continue
            seen.add(piece.text)
            kept.append(piece)
            for need in sorted(piece.needs):
                found = resolve(files, piece.module, need)
                if isinstance(found, Binding):
                    bindings.add(found)
                elif found is not None and files[found[0]].package != target:
                    bindings.add(Binding(f".{files[found[0]].package}", found[1], found[1]))
        says = files[target].docstring.split("\n")[0]
        docstring = DOCSTRING.format(says=says, scope=EVERYTHING if of_model is None else OWN)
        texts.append((f"{target}.py", joined(docstring, bindings, kept, files, of_model is None)))
    return tuple(texts)


def has_everything(folder: str | Path) -> bool:
    """Whether the code in a folder says that it has every concept."""
    path = Path(folder) / f"{MODEL}.py"
    return path.is_file() and EVERYTHING in path.read_text(encoding="utf-8", errors="replace")[:1000]


def differing(folder: str | Path, config: ZooConfig) -> list[str]:
    """The files of a folder whose text is not what these packages write for its model, or that are missing."""
    wanted = code(None if has_everything(folder) else config)
    paths = {Path(folder) / name: text for name, text in wanted.items()}
    return [path.name for path, text in paths.items() if not path.is_file() or path.read_bytes() != text.encode()]


def replace_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all; a link in its place is replaced, not followed."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def export_code(config: ZooConfig, folder: str | Path, everything: bool = False) -> None:
    """Writes the code that the model of `config` needs, or `everything`, into `folder`, and the complete `auto_map`
    into `config`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in code(None if everything else config).items():
        replace_text(folder / name, text)
    config.auto_map = dict(AUTO_MAP)
