"""Builds the site: `python -m zoo.site.build [SITE]`, which `make docs` runs.

Pages of the repository, pages that are computed and the site's own go into build/docs as Markdown; MkDocs makes HTML
of them. Nothing is fetched, neither here nor by who reads the site.
"""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from .api_pages import PACKAGES, api_page
from .computed_pages import flags_page, gallery_page, gpu_page, model_page
from .concepts import CONCEPTS
from .data import STATIC, without_notes, write_explorer, write_models
from .front import mixed
from .links import ROOT, Stage
from .models import shown_models

STAGED = ROOT / "build" / "docs"
OWN = Path(__file__).with_name("pages")
PAGES = (
    "docs/quick-start.md", "docs/training.md", "docs/serving.md", "docs/formats.md", "docs/placement.md",
    "docs/scale.md", "docs/architecture.md", "examples/surgery.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
)  # fmt: skip


def main() -> None:
    """Stages the pages and builds them into the folder that is named, or `site`."""
    from conversion.command import quiet

    quiet()
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")


def build(site: Path) -> None:
    """The whole site in a folder; raises SystemExit where a link or a page is missing."""
    from mkdocs.commands.build import build as build_pages
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    logging.getLogger("mkdocs").addHandler(logging.StreamHandler())
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    with without_notes():
        stage(STAGED)
    config = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(STAGED), site_dir=str(site), nav=navigation(), strict=True
    )
    try:
        config.plugins.on_startup(command="build", dirty=False)
        build_pages(config)
        config.plugins.on_shutdown()
    except Abort as error:
        raise SystemExit(f"The site was not built: {error}") from error


def stage(folder: Path) -> None:
    """All Markdown, pictures and data of the site."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = Stage(folder)
    shutil.copytree(OWN, folder)
    shutil.copy(STATIC / "site.css", folder)
    front = pages.translated(mixed(), "README.md")
    home = (OWN / "index.md").read_text(encoding="utf-8").replace("{{mixed}}", front)
    pages.write("index.md", home)
    for path in PAGES:
        pages.page(path)
    for path in sorted((ROOT / "docs" / "concepts").glob("*.md")):
        pages.page(f"docs/concepts/{path.name}")
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        pages.page(f"benchmarks/results/{path.name}")
    flags = flags_page()
    pages.write("flags.md", flags)
    pages.linked |= {f"configuration_zoo/{path.name}" for path in (ROOT / "configuration_zoo").glob("fields_*.py")}
    pages.write("gpu.md", gpu_page())
    for package in PACKAGES:
        pages.write(f"api/{package}.md", api_page(package))
    stage_gallery(pages)
    write_explorer(folder / "explorer", "../concepts/")
    pages.write_code()


def stage_gallery(pages: Stage) -> None:
    """The gallery, and a page for each of its models."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    folder = pages.folder / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    entries = write_models(folder, shown_models(), keep=found)
    pages.write("gallery/index.md", gallery_page(entries))
    for entry, report in found:
        card = ""
        path = f"model_cards/{entry['name'].replace('-', '_')}.md"
        if entry["kind"] == "families" and (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8").split("\n", 1)[1]
            card = "## Card\n\n" + pages.translated(text, path, f"gallery/{entry['key']}.md").strip()
        pages.write(f"gallery/{entry['key']}.md", model_page(entry, report, card))


def navigation() -> list[dict[str, Any]]:
    """What stands at the top and at the left of every page."""
    return [
        {"Home": "index.md"},
        {"Start": [{"Quick start": "quick-start.md"}, {"Security": "security.md"}, {"Changelog": "changelog.md"}]},
        {
            "Concepts": [
                "concepts/index.md",
                *({concept.title: f"concepts/{slug}.md"} for slug, concept in CONCEPTS.items()),
            ]
        },
        {"Gallery": "gallery/index.md"},
        {"Explorer": "explorer/index.html"},
        {"Flags": "flags.md"},
        {
            "Guides": [
                {"Train and fine-tune": "training.md"},
                {"Serve and evaluate": "serving.md"},
                {"Surgery": "surgery.md"},
                {"Formats": "formats.md"},
                {"Place a large model": "placement.md"},
                {"Train at scale": "scale.md"},
                {"On a GPU": "gpu.md"},
            ]
        },
        {
            "Reference": [
                *({name: f"api/{name}.md"} for name in PACKAGES),
                {"Layout of the code": "architecture.md"},
                {"Contributing": "contributing.md"},
            ]
        },
    ]


if __name__ == "__main__":
    main()
