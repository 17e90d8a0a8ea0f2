"""The explorer: a page that reckons what any config costs, and one in which the bundled model runs.

`write(folder)` puts both there: HTML, JavaScript and data that need no network and no server.
"""

import json
import shutil
from pathlib import Path

STATIC = Path(__file__).with_name("static")


def write(out: Path) -> None:
    """Writes the explorer into a folder, which is made where there is none."""
    from . import data
    from .rules import rules

    out = Path(out)
    shutil.copytree(STATIC, out, dirs_exist_ok=True)
    for name, source in rules().items():
        (out / name).write_text(source, encoding="utf-8")
    tables = ("models", "fields", "parts", "guides", "topologies", "gpus")
    lines = [f"export const {name} = {json.dumps(getattr(data, name)(), ensure_ascii=False)};" for name in tables]
    (out / "data.js").write_text("\n".join(lines) + "\n", encoding="utf-8")
