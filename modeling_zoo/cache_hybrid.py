"""Cache layers of blocks that hold a recurrent state and an attention cache side by side."""

from transformers.cache_utils import (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .cache_growing import GrowingLayer
from .cache_recurrent import RecurrentLayer
from .cache_sliding import SlidingLayer


class HybridLayer(RecurrentLayer):
    """A recurrent layer that owns an attention layer, `attention`, and hands it all that concerns keys and values.

    The classes below also derive from transformers' hybrid layers, for its `isinstance` questions alone: every method
    of theirs is overridden here. Lengths and masks are the attention layer's.
    """

    attention_class = None

    def __init__(self, *args, number_of_states=1, **kwargs):
        self.attention = self.attention_class(*args, **kwargs)
        RecurrentLayer.__init__(self, number_of_states=number_of_states)

    def __getattr__(self, name):
        if name == "attention":
            raise AttributeError(name)
        return getattr(self.attention, name)

    @property
    def keys(self):
        return self.attention.keys

    @property
    def values(self):
        return self.attention.values

    @property
    def is_sliding(self):
        return self.attention.is_sliding

    @property
    def is_initialized(self):
        return self.attention.is_initialized

    @property
    def record_past(self):
        return self._record_past

    @record_past.setter
    def record_past(self, value):
        self._record_past = value
        if hasattr(self.attention, "record_past"):
            self.attention.record_past = value

    def activate_past_recording(self):
        if hasattr(self.attention, "activate_past_recording"):
            self.attention.activate_past_recording()
        RecurrentLayer.activate_past_recording(self)

    def lazy_initialization(self, *args, **kwargs):
        """Two positional arguments are keys and values, keywords are recurrent states: as transformers calls it."""
        if args:
            self.attention.lazy_initialization(*args)
        else:
            RecurrentLayer.lazy_initialization(self, **kwargs)

    def update(self, key_states, value_states, *args, **kwargs):
        return self.attention.update(key_states, value_states, *args, **kwargs)

    def get_mask_sizes(self, query_length):
        return self.attention.get_mask_sizes(query_length)

    def get_seq_length(self):
        return self.attention.get_seq_length()

    def get_max_length(self):
        return self.attention.get_max_length()

    def crop(self, tokens_to_remove):
        """As either half; where one of them raises, neither is changed."""
        planned = self.plan(tokens_to_remove)
        self.attention.crop(tokens_to_remove)
        self.commit(planned)

    def reorder_cache(self, beam_idx):
        RecurrentLayer.reorder_cache(self, beam_idx)
        self.attention.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats):
        RecurrentLayer.batch_repeat_interleave(self, repeats)
        self.attention.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices):
        RecurrentLayer.batch_select_indices(self, indices)
        self.attention.batch_select_indices(indices)

    def offload(self):
        RecurrentLayer.offload(self)
        self.attention.offload()

    def prefetch(self):
        RecurrentLayer.prefetch(self)
        self.attention.prefetch()

    def reset(self):
        RecurrentLayer.reset(self)
        self.attention.reset()


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

    attention_class = StaticSlidingWindowLayer
    is_compileable = True

    def __init__(self, max_cache_len, sliding_window=None, **kwargs):
        HybridLayer.__init__(self, max_cache_len, sliding_window=sliding_window or max_cache_len, **kwargs)
