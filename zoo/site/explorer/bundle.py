"""A page's modules as one script: browsers load modules from a server alone, and the explorer opens as a file."""

import re
from pathlib import Path

IMPORT = re.compile(r'^import (?:\{([^}]*)\}|\* as (\w+)) from "\./([\w.]+)";\n', re.MULTILINE)
EXPORTED = re.compile(r"^export (?:async )?(?:const|let|function\*?|class) (\w+)", re.MULTILINE)
GROUP = re.compile(r"^export (?:const|let) [{\[]([^}\]]*)[}\]] =", re.MULTILINE)
LIST = re.compile(r"^export \{([^}]*)\};\n", re.MULTILINE)


def bundle(folder: Path, entry: str) -> str:
    """One script that does what `<script type="module" src="entry">` does. Raises ValueError for modules that import
    each other."""
    parts: list[str] = []
    add(folder, entry, parts, [], set())
    return '"use strict";\nconst $modules = {};\n' + "\n".join(parts)


def add(folder: Path, name: str, parts: list[str], open_ones: list[str], done: set[str]) -> None:
    """Appends a module behind those that it imports; raises ValueError for one that imports itself in the end."""
    if name in open_ones:
        raise ValueError(f"{' imports '.join([*open_ones, name])}: modules cannot import each other.")
    if name in done:
        return
    source = (folder / name).read_text("utf-8")
    for _, _, file in IMPORT.findall(source):
        add(folder, file, parts, [*open_ones, name], done)
    done.add(name)
    parts.append(f'$modules["{name}"] = (() => {{\n{wrapped(source)}}})();')


def wrapped(source: str) -> str:
    """The body of a function that returns what a module exports."""
    returned = [f"{name}: {name}" for name in EXPORTED.findall(source)]
    for group in GROUP.findall(source):
        returned += [f"{word}: {word}" for word in re.findall(r"\w+", group)]
    for group in LIST.findall(source):
        for entry in filter(None, map(str.strip, group.split(","))):
            name, _, other = entry.partition(" as ")
            returned.append(f"{other or name}: {name}")
    source = LIST.sub("", source)
    source = re.sub(r"^export ", "", source, flags=re.MULTILINE)

    def imported(match: re.Match) -> str:
        names, space, file = match.groups()
        if space:
            return f'const {space} = $modules["{file}"];\n'
        return f'const {{{names.replace(" as ", ": ")}}} = $modules["{file}"];\n'

    return f"{IMPORT.sub(imported, source)}\nreturn {{ {', '.join(dict.fromkeys(returned))} }};\n"
