"""The card of a model that surgery made: where it comes from, what was changed, what that cost."""

from pathlib import Path

from configuration_zoo import ZooConfig
from description_zoo.card import write_plain_card
from description_zoo.card_origin import CARD
from description_zoo.foreign_text import code_span, printable

from .report import Report


def write_surgery_card(folder: Path, config: ZooConfig, source: Path | None, report: Report) -> None:
    """README.md: the card of any zoo model, with a section on how it was made behind its first paragraph."""
    write_plain_card(folder, config, source)
    card = folder / CARD
    text = card.read_text(encoding="utf-8")
    head, mark, rest = text.partition("\n| Size |")
    card.write_text(head + "\n" + section(folder, report) + mark + rest, encoding="utf-8")


def section(folder: Path, report: Report) -> str:
    """Operations and the table of what they cost."""
    licences = sorted(path.name for path in folder.iterdir() if path.name.startswith(("LICENSE", "LICENCE", "NOTICE")))
    says = f"; its licence applies to these weights ({', '.join(map(code_span, licences))})" if licences else ""
    name = Path(report.source).name if "/" in report.source else report.source
    lines = [
        "## Surgery\n",
        f"Made from {code_span(name)} by `zoo surgery`, which changed the architecture{says}. The weights are not "
        "those of the source, and it cannot be restored from them.\n",
        "```",
        *(printable(line) for line in report.lines()),
        "```",
    ]
    return "\n".join(lines) + "\n"
