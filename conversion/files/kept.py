"""The record of what a source held beside the model: names in groups, counted, and the repository they came from."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from description_zoo.card_origin import repository_of

from ..engine.plan import Planner


def record(planner: Planner, kept: list[str], folder: Path, quantized: str | None = None) -> dict[str, Any] | None:
    """`source_extras` of a config: {beginning of the names: how many tensors}, the method of quantised weights whose
    stored tensors are kept, and where all that came from."""
    if not kept and quantized is None:
        return None
    said = {} if quantized is None else {"quantized": quantized}
    return {"tensors": groups(planner, kept)} | said | repository_of(folder)


def groups(planner: Planner, names: Iterable[str]) -> dict[str, int]:
    """{beginning of their names, as far as the rule that keeps them says it: how many}."""
    return dict(sorted(Counter(map(planner.group_of, names)).items()))


def in_words(tensors: dict[str, int]) -> str:
    """`vision_tower (437 tensors), multi_modal_projector (3 tensors)`"""
    return ", ".join(f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in tensors.items())
