"""Every mixer with a state of fixed size, by the name in `linear_attention_type`, and the one that pairs it with
attention."""

from .attention import GroupedQueryAttention
from .mixer import TokenMixer
from .recurrent_linear import DeltaAttention, LinearAttention
from .recurrent_state_space import GatedLinearUnit, SelectiveScan, ShortConvolutionMixer, StateSpaceDuality

LINEAR_MIXERS = {
    "linear_attention": LinearAttention,
    "lightning_attention": LinearAttention,
    "gated_linear_attention": LinearAttention,
    "delta_net": DeltaAttention,
    "gated_delta_net": DeltaAttention,
    "kimi_delta_attention": DeltaAttention,
    "mamba2": StateSpaceDuality,
    "mamba": SelectiveScan,
    "rg_lru": GatedLinearUnit,
    "short_conv": ShortConvolutionMixer,
}
# Softmax attentions that can stand beside a recurrence: their cache fits into the one of a hybrid layer.
ATTENTIONS_BESIDE = {"grouped_query": GroupedQueryAttention}


class HybridMixer(TokenMixer):
    """m_o · attention(m_i · x) + recurrence(x): both read the same input, both keep their part of one cache layer.

    For the words hybrid and hybrid_sliding; `attention_mask` is one mask per part, {word: mask} (Falcon-H1, Hymba).
    """

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.attention = ATTENTIONS_BESIDE[config.attention_types[layer_idx]](config, layer_idx)
        named = config.linear_attention_type
        self.recurrence = LINEAR_MIXERS[named[layer_idx] if isinstance(named, list) else named](config, layer_idx)
        self.in_multiplier = config.attention_in_multiplier
        self.out_multiplier = config.attention_out_multiplier

    def forward(self, hidden_states, *, attention_mask=None, **kwargs):
        masks = dict(attention_mask or {})
        recurrent_mask = masks.pop("linear_attention", None)
        attended = hidden_states if self.in_multiplier is None else hidden_states * self.in_multiplier
        attention_mask = next(iter(masks.values()), None)
        attended, weights = self.attention(attended, attention_mask=attention_mask, **kwargs)
        attended = attended if self.out_multiplier is None else attended * self.out_multiplier
        mixed, _ = self.recurrence(hidden_states, attention_mask=recurrent_mask, **kwargs)
        return mixed + attended, weights
