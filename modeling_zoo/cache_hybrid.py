"""Cache layers of blocks that hold a recurrent state and an attention cache side by side."""

from collections.abc import Callable
from typing import Any

from transformers.cache_utils import (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    StaticLayer,
)

from .cache_growing import GrowingLayer
from .cache_recurrent import RecurrentLayer
from .cache_sliding import SlidingLayer
from .cache_static_sliding import StaticSlidingLayer


def of_attention(name: str) -> property:
    """A property of the attention layer."""
    return property(lambda layer: getattr(layer.attention, name))


def by_attention(name: str) -> Callable:
    """A method that the attention layer carries out."""

    def call(layer, *args, **kwargs):
        return getattr(layer.attention, name)(*args, **kwargs)

    return call


def by_both(name: str) -> Callable:
    """A method that both halves carry out."""

    def call(layer, *args, **kwargs):
        getattr(RecurrentLayer, name)(layer, *args, **kwargs)
        getattr(layer.attention, name)(*args, **kwargs)

    return call


class HybridLayer(RecurrentLayer):
    """A recurrent layer that owns an attention layer, `attention`, for keys and values; lengths and masks are its.

    The classes below also derive from transformers' hybrid layers, for its `isinstance` questions alone: every method
    of theirs is overridden here.
    """

    attention_class = None
    keys, values = of_attention("keys"), of_attention("values")
    is_sliding, is_initialized = of_attention("is_sliding"), of_attention("is_initialized")
    update = by_attention("update")
    get_mask_sizes = by_attention("get_mask_sizes")
    get_seq_length, get_max_length = by_attention("get_seq_length"), by_attention("get_max_length")
    reorder_cache = by_both("reorder_cache")
    batch_repeat_interleave = by_both("batch_repeat_interleave")
    batch_select_indices = by_both("batch_select_indices")
    offload, prefetch, reset = by_both("offload"), by_both("prefetch"), by_both("reset")

    def __init__(self, *args: Any, number_of_states: int = 1, **kwargs: Any):
        self.attention = self.attention_class(*args, **kwargs)
        RecurrentLayer.__init__(self, number_of_states=number_of_states)

    def __getattr__(self, name: str) -> Any:
        if name == "attention":
            raise AttributeError(name)
        return getattr(self.attention, name)

    @property
    def record_past(self) -> bool:
        return self._record_past

    @record_past.setter
    def record_past(self, value: bool) -> None:
        self._record_past = value
        if hasattr(self.attention, "record_past"):
            self.attention.record_past = value

    def activate_past_recording(self) -> None:
        if hasattr(self.attention, "activate_past_recording"):
            self.attention.activate_past_recording()
        RecurrentLayer.activate_past_recording(self)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Two positional arguments are keys and values, keywords are recurrent states: as transformers calls it."""
        if args:
            self.attention.lazy_initialization(*args)
        else:
            RecurrentLayer.lazy_initialization(self, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """As both halves do; where one of them raises, neither is changed."""
        planned = self.plan(tokens_to_remove)
        self.attention.crop(tokens_to_remove)
        self.commit(planned)


class RecurrentAndGrowingLayer(HybridLayer, LinearAttentionAndFullAttentionLayer):
    """Recurrent state and full attention."""

    attention_class = GrowingLayer
    is_compileable = False


class RecurrentAndSlidingLayer(HybridLayer, LinearAttentionAndSlidingWindowAttentionLayer):
    """Recurrent state and a sliding window."""

    attention_class = SlidingLayer
    is_compileable = False


class RecurrentAndStaticLayer(HybridLayer, LinearAttentionAndFullAttentionLayer):
    """Recurrent state and full attention of a fixed length."""

    attention_class = StaticLayer
    is_compileable = True


class RecurrentAndStaticSlidingLayer(HybridLayer, LinearAttentionAndSlidingWindowAttentionLayer):
    """Recurrent state and a sliding window of a fixed length."""

    attention_class = StaticSlidingLayer
    is_compileable = True

    def __init__(self, max_cache_len: int, sliding_window: int | None = None, **kwargs: Any):
        HybridLayer.__init__(self, max_cache_len, sliding_window=sliding_window or max_cache_len, **kwargs)
