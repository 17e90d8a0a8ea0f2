"""Statistics of what modules read, over the rows of a text: second moments, never the states themselves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from transformers import PreTrainedModel

from .operation import Need, Statistics, SurgeryError

# Tokens of a forward.
BATCH_TOKENS = 2048


def batches(ids: Tensor, tokens: int = BATCH_TOKENS) -> Iterator[Tensor]:
    """Rows `[n, T]` a few at a time."""
    yield from ids.split(max(1, tokens // ids.shape[1]))


@torch.no_grad()
def collect(
    model: PreTrainedModel, needs: Sequence[Need], layers: Sequence[int], ids: Tensor, progress: bool = False
) -> Statistics:
    """{(layer, module): E[x xᵀ]} over all tokens, in float64, x with a last channel that is one. Raises SurgeryError
    where the states are no finite numbers."""
    sums: Statistics = {}
    with recorded(model, {(layer, need.module) for need in needs for layer in layers}, sums):
        for rows in tqdm(list(batches(ids)), desc="Calibrating", disable=not progress):
            model.model(rows.to(model.device), use_cache=False)
    for (layer, module), total in sums.items():
        if not total.isfinite().all():
            raise SurgeryError(f"layer {layer}: what {module} reads is no finite number in {model.dtype}.")
        total /= ids.numel()
    return sums


@contextmanager
def recorded(model: PreTrainedModel, places: set[tuple[int, str]], sums: Statistics) -> Iterator[None]:
    """While it is open, every forward adds to `sums` what is read at `places`."""

    def adding(place):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            states = (args[0] if args else kwargs["hidden_states"]).flatten(0, -2).double()
            states = torch.cat((states, states.new_ones(states.shape[0], 1)), 1)
            product = states.T @ states
            sums[place] = sums[place] + product if place in sums else product

        return hook

    handles = []
    try:
        for layer, name in sorted(places):
            module = model.model.layers[layer].get_submodule(name)
            handles.append(module.register_forward_pre_hook(adding((layer, name)), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
