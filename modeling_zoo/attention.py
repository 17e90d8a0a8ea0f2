"""Grouped-query attention: queries, keys and values per head, with what stands around them as slots.

heads share keys and values in groups:    multi-head   H = K      grouped-query   K < H      multi-query   K = 1
"""

from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_gates import make_output_gate
from .mixer import TokenMixer
from .norms import RMSNorm, make_qk_norm
from .ops_attention import attend_grouped, attend_one, eager_attention_forward, shares_keys, shares_reads
from .ops_attention_bands import BandMask, attend_in_bands
from .ops_rotary import apply_rotary


class Clamp(nn.Module):
    """x clamped to [-limit, limit] (MPT, OLMo)."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return x.clamp(min=-self.limit, max=self.limit)


class QueryTemperature(nn.Module):
    """q · (1 + attn_scale · log(1 + floor((position + offset) / floor_scale))), `[B, T, H, d]` (Llama 4, Ministral
    3)."""

    def __init__(self, config):
        super().__init__()
        self.scale, self.floor = config.attn_scale, config.floor_scale
        self.offset = config.attn_temperature_offset

    def forward(self, query, position_ids):
        steps = torch.floor((position_ids.float() + self.offset) / self.floor)
        temperature = 1 + self.scale * torch.log1p(steps)
        return (query * temperature[..., None, None]).to(query.dtype)


def is_served(backend):
    """Whether this attention implementation is a serving engine's."""
    return backend.startswith("vllm")


class SoftmaxAttention(TokenMixer):
    """What every softmax attention shares: scale, sinks, gate and the call of the attention interface."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.is_causal = not config.use_bidirectional_attention
        self.attention_dropout = config.attention_dropout
        self.softcap = config.attn_logit_softcapping
        self.scaling, self.upcast = config.attention_scaling(layer_idx), config.attention_upcast
        in_window = config.layer_types[layer_idx] in ("sliding_attention", "hybrid_sliding")
        self.sliding_window = config.sliding_window if in_window else None
        # transformers' paged attention asks whether the attribute is there, so it is only where it is used.
        self.has_sinks = config.has_attention_sinks(layer_idx)
        if self.has_sinks:
            self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))
        self.output_gate = make_output_gate(config, layer_idx)

    def initialize(self, std):
        if self.sink_logits is not None:
            init.normal_(self.sinks, mean=0.0, std=std)

    @property
    def sink_logits(self):
        """The learned sinks `[H]`, None for a layer without."""
        return self.sinks if self.has_sinks else None

    @property
    def served(self):
        """Whether a serving engine computes the attention, over a cache of its own and flattened sequences."""
        return is_served(self.config._attn_implementation)

    def special(self, **kwargs):
        """What a backend is told beyond mask and scale."""
        kwargs["dropout"] = self.attention_dropout if self.training else 0.0
        if self.softcap is not None:
            kwargs["softcap"] = self.softcap
        if self.has_sinks:
            kwargs["s_aux"] = self.sinks
        if self.upcast:
            kwargs["upcast"] = True
        return kwargs

    def attend(self, query, key, value, attention_mask, backend=None, **kwargs):
        """`[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H, v]`, weights or None) by the configured
        backend."""
        if isinstance(attention_mask, BandMask):
            attend = partial(self.attend, **kwargs)
            return attend_in_bands(attend, query, key, value, attention_mask), None
        backend = backend or self.config._attn_implementation
        special = self.special(**kwargs)
        if shares_reads(backend, query, key, **special):
            return attend_one(query, key, value, attention_mask, self.scaling), None
        if shares_keys(backend, query, key, attention_mask, **special):
            return attend_grouped(query, key, value, attention_mask, self.scaling), None
        if kwargs.get("position_bias") is not None and backend == "flex_attention":
            # Its kernel reads the bias at every index of batch and query.
            special["position_bias"] = kwargs["position_bias"].expand(query.shape[0], -1, query.shape[2], -1)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
        return attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **special,
        )


class GroupedQueryAttention(SoftmaxAttention):
    """softmax(q kᵀ · scale) v over `num_attention_heads` query and `num_key_value_heads` key-value heads of `head_dim`.

    q, k, v = W x → clamp → norm and rotation (in the order `qk_norm_position` says) → temperature → cache → attention →
    gate → o_proj. Values have `value_width` channels and a scale of their own; the clamp of queries and keys may stand
    after their norm. (Vaswani et al. 2017; Shazeer 2019; Ainslie et al. 2023; Llama, Qwen3.)
    """

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.head_dim, self.value_width = config.head_dim, config.value_width
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = heads // kv_heads
        self.query_parts = (self.head_dim, config.value_width * (self.output_gate.query_width - 1))
        self.query_width, self.gates = sum(self.query_parts), config.attn_output_gate is not None
        self.value_scale, self.key_multiplier = config.attention_value_scale, config.key_multiplier
        hidden = config.hidden_size
        self.q_proj = nn.Linear(hidden, heads * self.query_width, bias=config.attention_bias)
        self.build_keys(config, layer_idx)
        self.o_proj = nn.Linear(heads * config.value_width, hidden, bias=config.attention_out_bias)
        self.clip = Clamp(config.clip_qkv) if config.clip_qkv is not None else nn.Identity()
        # A call of a module that does nothing takes as long as a small operation: what is not there is left out.
        self.clips, self.clip_last = config.clip_qkv is not None, config.clip_qkv_position == "after_norm"
        self.q_norm = make_qk_norm(config, heads) if config.has_qk_norm(layer_idx) else nn.Identity()
        # Later layers may read what this one caches.
        self.lends = config.kv_sharing_modes[layer_idx] == "store"
        self.temperature = QueryTemperature(config) if config.has_attention_temperature(layer_idx) else None
        self.rotation = {"interleave": config.rope_interleave, "upcast": config.rope_dtype == "float32_qk"}
        self.normalises = config.has_qk_norm(layer_idx) or (self.clips and self.clip_last)
        self.norm_last = config.qk_norm_position == "after_rope"

    def build_keys(self, config, layer_idx):
        """The maps to keys and values, and their norms."""
        kv_heads, hidden, bias = config.num_key_value_heads, config.hidden_size, config.attention_bias
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias)
        self.v_proj = None
        if not config.attention_k_eq_v:
            self.v_proj = nn.Linear(hidden, kv_heads * config.value_width, bias=bias)
        self.norms_values = config.value_norm
        self.v_norm = RMSNorm(config.value_width, config.norm_eps, affine=False) if config.value_norm else nn.Identity()
        self.k_norm = make_qk_norm(config, kv_heads) if config.has_qk_norm(layer_idx) else nn.Identity()

    def _normalise(self, states, norm):
        states = norm(states)
        return self.clip(states) if self.clips and self.clip_last else states

    def finish(self, states, norm, position_embeddings):
        """Norm and rotation of queries or keys `[B, T, h, d]`, in the configured order."""
        if self.normalises and not self.norm_last:
            states = self._normalise(states, norm)
        if position_embeddings is not None:
            states = apply_rotary(states, position_embeddings, **self.rotation)
        return self._normalise(states, norm) if self.normalises and self.norm_last else states

    def queries(self, hidden_states):
        """`[B, T, D]` → queries `[B, T, H, d]`, gate `[B, T, H, v]` or None."""
        query = self.q_proj(hidden_states)
        if self.clips and not self.clip_last:
            query = self.clip(query)
        query = query.view(*hidden_states.shape[:-1], -1, self.query_width)
        return query.split(self.query_parts, dim=-1) if self.query_parts[1] else (query, None)

    def keys_and_values(self, hidden_states, position_embeddings):
        """`[B, T, D]` → keys `[B, K, T, d]`, normed and turned, and values `[B, K, T, v]`: what is cached."""
        key = self.k_proj(hidden_states)
        value = key if self.v_proj is None else self.v_proj(hidden_states)
        if self.clips:
            value = self.clip(value)
        if self.key_multiplier is not None:
            key = key * self.key_multiplier
        if self.clips and not self.clip_last:
            key = self.clip(key)
        heads = (*hidden_states.shape[:-1], -1)
        key, value = key.view(*heads, self.head_dim), value.view(*heads, self.value_width)
        if self.norms_values:
            value = self.v_norm(value)
        if self.value_scale is not None:
            value = value * self.value_scale
        return self.finish(key, self.k_norm, position_embeddings).transpose(1, 2), value.transpose(1, 2)

    def seen(self, hidden_states, position_embeddings, past_key_values, shared_key_values):
        """All keys `[B, K, S, d]` and values `[B, K, S, v]` the queries may see."""
        key, value = self.keys_and_values(hidden_states, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.lends and shared_key_values is not None:
            shared_key_values.put(self.layer_idx, key, value)
        return key, value

    def forward(
        self,
        hidden_states,
        *,
        position_embeddings=None,
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        shared_key_values=None,
        **kwargs,
    ):
        query, gate = self.queries(hidden_states)
        query = self.finish(query, self.q_norm, position_embeddings)
        if self.temperature is not None:
            query = self.temperature(query, position_ids)
        query = query.transpose(1, 2)
        key, value = self.seen(hidden_states, position_embeddings, past_key_values, shared_key_values)
        backend = self.config._attn_implementation
        if is_served(backend):
            # The engine finds layer and scale in the text of this call, and gives heads side by side.
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(backend, None)
            attn_output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
            attn_output = attn_output.view(*hidden_states.shape[:-1], -1, self.value_width)
        else:
            attn_output, weights = self.attend(
                query, key, value, attention_mask, backend=backend, position_ids=position_ids, **kwargs
            )
        if self.gates:
            attn_output = self.output_gate(attn_output, hidden_states, gate)
        return self.o_proj(attn_output.flatten(-2).contiguous()), weights
