"""Which experts a model sends each token to, read off whatever class of router it has."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAYER = re.compile(r"\.(\d+)\.")


@contextmanager
def recorded_routes(model: "PreTrainedModel", tokens: int) -> "Iterator[dict[int, torch.Tensor]]":
    """While it is open, each forward over `tokens` tokens leaves {layer: chosen experts `[tokens, k]`, sorted} in the
    dict it gives, sparse layers only.

    A router may give the experts' numbers, or weights that are zero for the rest; where it gives logits alone, the
    numbers are what its experts are called with.
    """
    chosen, called, routes = {}, {}, {}

    def after(name, is_experts):
        layer = int(LAYER.search(name).group(1))

        def hook(module, args, kwargs, output):
            found = choice_in(output, tokens)
            if found is not None:
                chosen.setdefault(layer, found)
            elif is_experts and (found := numbers_in([*args, *kwargs.values()], tokens)) is not None:
                called.setdefault(layer, found)

        return hook

    handles = []
    for name, module in model.named_modules():
        is_experts, is_router = name.endswith("experts"), name.endswith(("gate", "router"))
        if LAYER.search(name) and (is_experts or is_router):
            handles.append(module.register_forward_hook(after(name, is_experts), with_kwargs=True))
    try:
        yield routes
    finally:
        for handle in handles:
            handle.remove()
        routes |= {layer: chosen.get(layer, called.get(layer)) for layer in sorted(chosen | called)}


def choice_in(output: Any, tokens: int) -> "torch.Tensor | None":
    """Sorted experts `[tokens, k]` in what a router returned, None without."""
    parts = output if isinstance(output, (tuple, list)) else [output]
    numbers = numbers_in(parts, tokens)
    return weights_in(parts, tokens) if numbers is None else numbers


def numbers_in(parts: Iterable[Any], tokens: int) -> "torch.Tensor | None":
    """The first integers with a row for each token, sorted in each."""
    for part in parts:
        if getattr(part, "ndim", 0) == 2 and len(part) == tokens and not part.is_floating_point():
            return part.cpu().sort(dim=-1).values
    return None


def weights_in(parts: Iterable[Any], tokens: int) -> "torch.Tensor | None":
    """The columns that are not zero, of the first weights with a row for each token and as many zeros in each."""
    for part in parts:
        if getattr(part, "ndim", 0) == 2 and len(part) == tokens:
            counts = (part != 0).sum(dim=-1)
            if (counts == counts[0]).all() and 0 < counts[0] < part.shape[1]:
                return part.cpu().nonzero()[:, 1].view(tokens, -1)
    return None


def agreement(ours: dict, theirs: dict) -> dict | None:
    """Share of (token, layer) for which both models choose the same set of experts, in all and by layer of the second.

    None for models without experts; a share is None where the two cannot be compared. Sparse layers are matched in
    their order: one family counts a layer where another counts two.
    """
    if not ours and not theirs:
        return None
    if len(ours) != len(theirs):
        return {"agreement": None, "by_layer": {}}
    shares = [
        (one == other).all(dim=-1).float().mean().item() if one.shape == other.shape else None
        for one, other in zip(ours.values(), theirs.values(), strict=True)
    ]
    comparable = shares and None not in shares
    return {
        "agreement": sum(shares) / len(shares) if comparable else None,
        "by_layer": {f"layer {layer}": share for layer, share in zip(theirs, shares, strict=True)},
    }
