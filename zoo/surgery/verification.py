"""The proof of what an exact operation promises: logits of both models on random tokens."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from configuration_zoo import ZooConfig

from .operation import BITS, TOLERANCE, Exactness, SurgeryError
from .streaming import runnable
from .tensors import Tensors

if TYPE_CHECKING:
    from .operating import State

VERIFIED_TOKENS = 48
# How much more than one rounding of each weight an exact operation may move the logits.
ROUNDINGS = 8


@torch.no_grad()
def verified(
    state: "State", new: ZooConfig, tensors: Tensors, promised: Exactness, kept: list[int] | None = None
) -> float:
    """The largest difference of the logits, relative to the largest of them, on random tokens, of those `kept` and no
    longer than what is `promised` holds for. Raises SurgeryError where it is more than an exact operation may have."""
    generator = torch.Generator().manual_seed(state.seed)
    tokens = min(VERIFIED_TOKENS, new.max_position_embeddings, state.config.max_position_embeddings)
    tokens = min(tokens, promised.length or tokens)
    shared = min(new.vocab_size, state.config.vocab_size)
    ids = torch.randint(shared, (2, tokens), generator=generator)
    places = torch.arange(shared) if kept is None else torch.tensor(kept)

    def logits(config: ZooConfig, tensors: Tensors) -> Tensor:
        model = runnable(config, tensors)
        # A fused kernel sums in an order that hangs on the width of heads and on the processor.
        model.set_attn_implementation("eager")
        if config is state.config:
            return model(places[ids], use_cache=False).logits[..., places]
        return model(ids, use_cache=False).logits[..., :shared]

    first, second = logits(state.config, state.tensors), logits(new, tensors)
    if not second.isfinite().all():
        raise SurgeryError(f"the new model's logits are no finite numbers in {first.dtype}: choose another --dtype.")
    difference = relative_difference(first, second)
    limit = 0.0 if promised.word == BITS else TOLERANCE if first.dtype == torch.float32 else 0.1
    if difference > limit > 0:
        # Some models, recurrences above all, make more of a rounding than others.
        limit = max(limit, ROUNDINGS * relative_difference(first, logits(state.config, Rounded(state.tensors))))
    if difference > limit:
        raise SurgeryError(
            f"the new model differs from the source by {difference:.1e} of its largest logit, where {promised.word!r} "
            f"allows {limit:.0e}: nothing was written; please report this model's config."
        )
    return difference


class Rounded:
    """A model's tensors with each number moved by one rounding, up or down."""

    def __init__(self, tensors: Tensors):
        self.headers, self._tensors = tensors.headers, tensors

    def read(self, name: str) -> Tensor:
        tensor = self._tensors.read(name)
        if not tensor.is_floating_point():
            return tensor
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
        return (tensor.double() * (1 + signs * torch.finfo(tensor.dtype).eps / 2)).to(tensor.dtype)


def relative_difference(first: Tensor, second: Tensor) -> float:
    """max |a - b| / max |a|, logits of suppressed tokens left out of the scale."""
    spoken = first > torch.finfo(first.dtype).min / 2
    return ((first - second).abs().max() / first[spoken].abs().max().clamp(min=1e-30)).item()
