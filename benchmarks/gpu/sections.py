"""All sections: what is right comes first, so that no timing takes its time."""

from . import ceilings, core, correct, fla, graphs, growth, launches, steps
from .harness import Section

SECTIONS = (
    Section("ceilings", ceilings.items, 30),
    Section("correct", correct.items, 40, together=True),
    Section("traced", graphs.compile_items, 80, together=True),
    Section("waits", launches.wait_items, 10, together=True),
    Section("graph", graphs.capture_items, 10, together=True),
    Section("launches", launches.launch_items, 16),
    Section("growth", growth.items, 5),
    Section("prompts", steps.prompt_items, 18),
    Section("core", core.items, 35),
    Section("steps", steps.step_items, 70),
    Section("warm", graphs.warm_items, 25, together=True),
    Section("compiled", graphs.speed_items, 70),
    Section("generate", steps.generate_items, 40),
    Section("fla", fla.items, 120, optional=True),
)


def find(name: str) -> Section:
    return next(section for section in SECTIONS if section.name == name)


def wanted(only: tuple[str, ...]) -> list[Section]:
    """Those that are named, or all but the optional ones; ceilings always, as the others are measured by them."""
    return [one for one in SECTIONS if one.name in (*only, "ceilings") or not (only or one.optional)]
