"""The explorer: a page that reckons what any config costs, and one in which the bundled model runs.

`write(folder)` puts both there: HTML, JavaScript and data that need no network and no server.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

STATIC = Path(__file__).with_name("static")
# The script of each page.
PAGES = ("index.js", "run.js")
TABLES = ("models", "fields", "parts", "guides", "topologies", "gpus")


def write(out: Path, guides: str | None = None, home: str | None = None) -> None:
    """Writes the explorer into a folder, which is made where there is none. `guides`: where the pages of the guides
    stand from there, `../concepts/`; `home`: the page of a site that it belongs to. Raises UserError where the model
    that runs in the page is not installed."""
    from . import data
    from .bundle import bundle
    from .families import families
    from .rules import rules

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(STATIC, folder, dirs_exist_ok=True)
        for name, source in (rules() | {"families.js": families()}).items():
            (folder / name).write_text(source, encoding="utf-8")
        tables = {name: getattr(data, name)() for name in TABLES} | {"guidePages": guides}
        (folder / "data.js").write_text(exported(tables), encoding="utf-8")
        (folder / "stories.js").write_text(exported(data.stories()), encoding="utf-8")
        for page in PAGES:
            (out / page).write_text(bundle(folder, page), encoding="utf-8")
        link = f'<a href="{home}">Home</a> ' if home else ""
        for page in folder.glob("*.html"):
            text = page.read_text(encoding="utf-8").replace("{{home}}", link)
            (out / page.name).write_text(text, encoding="utf-8")
        shutil.copy(folder / "style.css", out)


def exported(tables: dict[str, Any]) -> str:
    """A module of JavaScript that exports some values."""
    return "".join(
        f"export const {name} = {json.dumps(table, ensure_ascii=False)};\n" for name, table in tables.items()
    )
