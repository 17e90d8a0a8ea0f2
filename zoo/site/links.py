"""Pages of the repository as pages of the site: links lead to where a page stands there, those to code to a page with
the code."""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from conversion.engine.catalog import model_type_of

ROOT = Path(__file__).resolve().parents[2]
# Where a file of the repository stands on the site; what begins like a folder here has its own name behind it.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "source/LICENSE.md",
    "examples/surgery.md": "surgery.md",
    "docs/": "",
    "benchmarks/results/": "results/",
}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^(`{3,}|~{3,})")
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {".py": "python", ".md": "markdown", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".ipynb": "json"}


def place_of(path: str) -> str:
    """`docs/training.md` -> `training.md`; `modeling_zoo/norms.py` -> `source/modeling_zoo/norms.py.md`."""
    if path.startswith("model_cards/") and path.endswith(".md"):
        return f"gallery/families/{model_type_of(Path(path).stem)}.md"
    for start, place in PLACES.items():
        if path == start:
            return place
        if start.endswith("/") and path.startswith(start) and Path(path).suffix in (".md", *PICTURES):
            return place + path.removeprefix(start)
    return f"source/{path}" if Path(path).suffix in PICTURES else f"source/{path.rstrip('/')}.md"


class Stage:
    """A folder of Markdown that the generator reads. `pages` are files of the repository; pages of code are added when
    something leads to them."""

    def __init__(self, folder: Path):
        self.folder, self.linked = folder, set()

    def write(self, place: str, text: str) -> None:
        """A page of the site's own."""
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def page(self, path: str, text: str | None = None) -> None:
        """A page of the repository, with its own text or another."""
        text = (ROOT / path).read_text(encoding="utf-8") if text is None else text
        self.write(place_of(path), self.translated(text, path))

    def translated(self, text: str, path: str, place: str | None = None) -> str:
        """Its links led to where their targets stand; what is code stays as it is. `place`: where the text goes, if not
        where its file would."""
        lines, fence = [], ""
        for line in text.split("\n"):
            mark = FENCE.match(line.strip())
            if mark and not fence:
                fence = mark[1]
            elif mark and line.strip() == fence:
                fence = ""
            elif not fence:
                line = LINK.sub(lambda found: self._link(found[1], path, place or place_of(path)), line)
            lines.append(line)
        return "\n".join(lines)

    def _link(self, link: str, path: str, place: str) -> str:
        """A link of the page `path`, as it has to be at `place`."""
        if re.match(r"[a-z]+:|#", link):
            return link
        target, hash_, anchor = link.partition("#")
        target = os.path.normpath(PurePosixPath(path).parent / target)
        there = place_of(target)
        if Path(target).suffix in PICTURES:
            self.picture(target)
        elif there.startswith("source/"):
            self.linked.add(target)
        return os.path.relpath(there, PurePosixPath(place).parent) + hash_ + anchor

    def picture(self, path: str) -> None:
        """A picture of the repository, as it is."""
        place = self.folder / place_of(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, place)

    def write_code(self) -> None:
        """A page for each file or folder of the repository that some page leads to."""
        for path in sorted(self.linked):
            where = ROOT / path
            if where.is_dir():
                names = sorted(entry.name for entry in where.iterdir() if not entry.name.startswith(("_", ".")))
                body = "\n".join(f"- `{name}`" for name in names)
            else:
                body = f"````` {LANGUAGES.get(where.suffix, 'text')}\n{where.read_text(encoding='utf-8')}\n`````"
            self.write(place_of(path), f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{body}\n")
