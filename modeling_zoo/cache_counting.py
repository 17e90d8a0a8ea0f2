"""Cache layers that count tokens, for a cache in which no layer holds any keys to be counted."""

from typing import Any, NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from .cache_recurrent import RecurrentLayer


class Counting:
    """Answers for the length of a cache; mixed in before the class that says what else the layer holds.

    The model calls `advance(t)` once per forward, after its layers. `counts_on_device` keeps the count in a tensor, for
    static caches: a Python number that changes per token is a recompilation per token.
    """

    device = None

    def __init__(self, counts_on_device: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.keys = self.values = None
        self.cumulative_length = torch.zeros((), dtype=torch.long) if counts_on_device else 0

    def advance(self, count: int) -> None:
        """`count` more tokens have been seen."""
        if isinstance(self.cumulative_length, int):
            self.cumulative_length += count
            return
        if self.device is not None and self.cumulative_length.device != self.device:
            self.cumulative_length = self.cumulative_length.to(self.device)
            torch._dynamo.mark_static_address(self.cumulative_length)
        self.cumulative_length.add_(count)

    def get_seq_length(self) -> int | torch.Tensor:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int | torch.Tensor, int]:
        return self.cumulative_length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.cumulative_length += tokens_to_remove

    def reset(self) -> None:
        super().reset()
        self.cumulative_length -= self.cumulative_length

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("This layer holds no keys and values: it cannot be updated with them.")


class CountingRecurrentLayer(Counting, RecurrentLayer, CacheLayerMixin):
    """A recurrent layer that counts as well."""

    @classmethod
    def instead_of(cls, layer: RecurrentLayer, counts_on_device: bool) -> "CountingRecurrentLayer":
        """One in place of an empty recurrent layer."""
        new = cls(counts_on_device=counts_on_device, number_of_states=layer.number_of_states)
        if layer.record_past:
            new.activate_past_recording()
        return new

    def get_seq_length(self) -> int | torch.Tensor:
        """Tokens seen; raises RuntimeError if the layer holds a state and nothing was counted."""
        count = self.cumulative_length
        if isinstance(count, int) and not count and any(self.has_previous_state.values()):
            raise RuntimeError("The tokens of this cache were not counted: call `advance(t)` once per forward.")
        return count


class CountingLayer(Counting, CacheLayerMixin):
    """The place of a layer that keeps nothing, in a cache where no layer keeps anything."""

    supports_early_init = False
    is_compileable = is_croppable = True

    @classmethod
    def instead_of(cls, layer: object, counts_on_device: bool) -> "CountingLayer":
        """One in place of a layer that keeps nothing."""
        return cls(counts_on_device=counts_on_device)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is laid out for a count."""

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.cumulative_length += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """All rows are of one length."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """All rows are of one length."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """All rows are of one length."""
