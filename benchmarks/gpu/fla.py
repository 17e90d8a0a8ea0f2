"""Recurrences by flash-linear-attention's kernels: right, and how fast. Its kernels take minutes to compile."""

import importlib.util

from .core import BATCHES, delta_core, timed
from .correct import all_ways
from .harness import Item, Run
from .mixers import chosen
from .steps import prompt_rows

MIXER = "gated_delta_net"


def items(run: Run) -> list[Item]:
    """One mixer, unless others are named, the token's operation, a prompt of the hybrid."""
    if not run.cuda or importlib.util.find_spec("fla") is None:
        return [Item("flash-linear-attention", lambda: {"skipped": "not installed, or no GPU"})]
    names = run.options.mixers or (MIXER,)
    found = [
        Item(name, lambda name=name, fields=fields: all_ways(run, name, fields))
        for name, fields in chosen(names).items()
    ]
    found += [
        Item(f"gdn ×{batch} {form}", lambda case=("gdn", 8192, batch, form): timed(run, case, delta_core))
        for batch in BATCHES
        for form in ("plain", "chosen")
    ]
    return [*found, Item("gdn prompt", lambda: prompt_rows(run, "gdn"))]
