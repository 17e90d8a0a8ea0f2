"""Which layers to change: `auto:n` are the n whose change, each alone, moves the model least from its source.

What is measured is the divergence of the logits, after a little training on the layer's outputs where an operation says
that its start says nothing (`fitting_steps`). The order differs from operation to operation, so it is measured for the
one that is asked.
"""

from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from . import planner
from .distillation import INDEXER, OUTPUTS, Distillation, HealingStage
from .healing import default_rate
from .measurement import divergence
from .operation import Operation, SurgeryError
from .tensors import build
from .texts import ROW, Text, random_text

# Tokens that a layer is judged by.
JUDGED_TOKENS = 2048


def number_of(layers: Any, operation: Operation, config: Any, fields: dict[str, Any]) -> int | None:
    """How many layers are to be chosen; None where they are named. Raises SurgeryError for a bad number."""
    if not (isinstance(layers, str) and layers.startswith("auto")):
        return operation.number_to_choose(config, fields) if layers in (None, "all") else None
    _, _, number = layers.partition(":")
    if not number.isdecimal() or not 0 < int(number) <= len(operation.layers(config, fields)):
        possible = len(operation.layers(config, fields))
        raise SurgeryError(f"layers={layers!r}: write auto:n with n from 1 to {possible}.")
    return int(number)


def cheapest_layers(
    state: Any, operation: Operation, fields: dict[str, Any], method: str | None, count: int, text: Text | None
) -> list[int]:
    """The `count` layers that cost least, in their order. Raises SurgeryError as the operation does."""
    from .operating import made

    costs: dict[int, float] = {}
    candidates = operation.layers(state.config, fields)
    if count == len(candidates):
        return candidates
    teacher = build(state.config, state.tensors, torch.float32)
    rows = text.to_learn() if text else random_text(state.config, JUDGED_TOKENS, ROW, state.seed).ids
    for layer in tqdm(candidates, desc="Choosing layers", disable=not state.progress):
        request = planner.requested(
            state.config, operation, operation.for_one(state.config, fields), [layer], method, state.seed
        )
        new, tensors, _ = made(state, operation, request, text)
        student = build(new, tensors, torch.float32)
        if operation.fitting_steps:
            fit_outputs(teacher, student, operation, request.layers, rows, state.seed)
        costs[layer] = divergence(teacher, student, rows[: max(1, JUDGED_TOKENS // rows.shape[1])])
    return sorted(sorted(costs, key=costs.__getitem__)[:count])


def fit_outputs(teacher: Any, student: Any, operation: Operation, layers: list[int], rows: Tensor, seed: int) -> None:
    """Some steps on the outputs of what was changed, or of its indexers."""
    places = [f"{layer}.{part}" for layer in layers for part in operation.parts]
    loss = INDEXER if INDEXER in operation.parts else OUTPUTS
    stage = HealingStage(loss, operation.fitting_steps, 3 * default_rate(student.config), "changed")
    Distillation(teacher, student, rows, places, [stage], seed).run()
