"""Grouped-query attention: H query heads read the keys and values of K heads, in groups of H / K.

    multi-head  K = H      grouped-query  1 < K < H      multi-query  K = 1
    q q q q q q            q q q   q q q                 q q q q q q
    k k k k k k              k       k                        k

How far a token sees (sliding windows, chunks) is drawn in `attention_masks.py`; latent and sparse attention have files
of their own.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention_gates import make_output_gate, query_gate_width
from .attention_ranks import GroupedProjection
from .mixer import TokenMixer
from .norms import RMSNorm, make_qk_norm, make_sub_norm
from .ops_attention import attention
from .ops_attention_bands import AttentionMask
from .ops_own_part import own_part
from .ops_rotary import apply_rotary, backwards


class Clamp(nn.Module):
    """x clamped to [-limit, limit] (MPT, OLMo)."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=-self.limit, max=self.limit)


class QueryTemperature(nn.Module):
    """q · (1 + scale · log(1 + floor((position + offset) / floor_scale))), `[B, T, H, d]` (Llama 4, Ministral
    3)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.scale, self.floor = config.attn_temperature["scale"], config.attn_temperature["floor_scale"]
        self.offset = config.attn_temperature["offset"]

    def forward(self, query: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        steps = torch.floor((position_ids.float() + self.offset) / self.floor)
        temperature = 1 + self.scale * torch.log1p(steps)
        return (query * temperature[..., None, None]).to(query.dtype)


def rotation_of(config: ZooConfig) -> dict[str, bool]:
    """How `apply_rotary` turns the heads of a model."""
    options = {"interleave": config.rope_interleave, "upcast": config.precision["rope"] == "float32_qk"}
    return options | ({"trailing": True} if config.position_config["rope_channels"] == "last" else {})


class SoftmaxAttention(TokenMixer):
    """What every softmax attention has: a scale, a window, a cap, sinks and a gate; and the call of the operation."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal = not config.use_bidirectional_attention
        self.attention_dropout = config.attention_dropout
        self.softcap = config.attn_logit_softcapping
        self.scaling, self.upcast = config.attention_scaling(layer_idx), config.precision["attention_upcast"]
        # The mask hides what is outside the window; some backends want to know its size beside that.
        slides = config.layer_types[layer_idx] in ("sliding_attention", "hybrid_sliding")
        self.sliding_window = config.sliding_window if slides else None
        # transformers' paged attention asks whether the attribute `sinks` is there, so it is only where it is used.
        self.has_sinks = config.has_attention_sinks(layer_idx)
        if self.has_sinks:
            self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))
        self.output_gate = make_output_gate(config)
        width = config.num_attention_heads * config.value_width
        self.sub_norm = make_sub_norm(config, layer_idx, width)

    def build_queries(self, config: ZooConfig, width: int) -> None:
        """One projection to the queries, or two with a norm between them."""
        hidden, rank = config.hidden_size, config.mla_config["query_rank"]
        self.q_a_proj = None
        if rank is None:
            self.q_proj = nn.Linear(hidden, width, bias=config.attention_bias)
        else:
            self.q_a_proj = nn.Linear(hidden, rank, bias=config.attention_bias)
            self.q_a_layernorm = RMSNorm(rank, config.norm_eps, cast=config.precision["norm"])
            self.q_b_proj = nn.Linear(rank, width, bias=False)

    def build_output(self, config: ZooConfig) -> None:
        """One output projection, or two through a rank in groups of heads."""
        width, rank = config.num_attention_heads * self.value_width, config.mla_config["output_rank"]
        self.o_a_proj = None
        if rank is None:
            self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_out_bias)
        else:
            groups = config.mla_config["output_groups"]
            plain = groups == 1
            self.o_a_proj = nn.Linear(width, rank, bias=False) if plain else GroupedProjection(width, rank, groups)
            self.o_b_proj = nn.Linear(groups * rank, config.hidden_size, bias=config.attention_out_bias)

    def query_source(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What queries are projected from: `[B, T, D]` as it is, or `[B, T, q]`, normed."""
        return hidden_states if self.q_a_proj is None else self.q_a_layernorm(self.q_a_proj(hidden_states))

    def project_queries(self, source: torch.Tensor) -> torch.Tensor:
        """`query_source` → `[B, T, H · d]`."""
        return self.q_proj(source) if self.q_a_proj is None else self.q_b_proj(source)

    def project_output(self, attn_output: torch.Tensor) -> torch.Tensor:
        """`[B, T, H · v]` → `[B, T, D]`."""
        return self.o_proj(attn_output) if self.o_a_proj is None else self.o_b_proj(self.o_a_proj(attn_output))

    def initialize(self, std: float) -> None:
        if self.has_sinks:
            init.normal_(self.sinks, mean=0.0, std=std)

    @property
    def sink_logits(self) -> torch.Tensor | None:
        """The learned sinks `[H]`, None for a layer without."""
        return self.sinks if self.has_sinks else None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """softmax(q kᵀ · scale) v: `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H, v]`, weights or
        None)."""
        return attention(self, query, key, value, attention_mask, **kwargs)

    def output(self, attn_output: torch.Tensor, hidden_states: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """Gate, norm and output projection, `[B, T, H, v]` → `[B, T, D]`."""
        if self.output_gate is not None:
            attn_output = self.output_gate(attn_output, hidden_states, gate)
        attn_output = attn_output.flatten(-2).contiguous()
        return self.project_output(attn_output if self.sub_norm is None else self.sub_norm(attn_output))


class GroupedQueryAttention(SoftmaxAttention):
    """softmax(q kᵀ · scale) v over `num_attention_heads` query and `num_key_value_heads` key-value heads of `head_dim`.

        x [B, T, D]
          → q_proj, k_proj, v_proj      [B, T, H, d], [B, T, K, d], [B, T, K, v]
          → norm and rotation of queries and keys
          → cache                       keys and values of all tokens so far, [B, K, S, d] and [B, K, S, v]
          → attend                      [B, T, H, v]
          → gate → o_proj               [B, T, D]

    Everything else is a slot, None where the config does not ask for it: calling a module that does nothing takes as
    long as a small operation. (Vaswani et al. 2017; Shazeer 2019; Ainslie et al. 2023; Llama, Qwen3.)
    """

    # Over more ranks than heads of keys each head is there as often, and a rank keeps the one it reads.
    key_copies = 1

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        heads = config.num_attention_heads
        self.num_key_value_groups = heads // config.num_key_value_heads
        self.head_dim, self.value_width = config.head_dim, config.value_width
        # Channels of a head in q_proj: those of its query, those of its gate.
        self.gate_width = query_gate_width(config)
        self.query_parts = (self.head_dim, self.gate_width)
        self.build_queries(config, heads * sum(self.query_parts))
        self.build_keys(config, layer_idx)
        self.build_output(config)
        has_norm = config.has_qk_norm(layer_idx)
        self.q_norm = make_qk_norm(config, heads, of_queries=True) if has_norm else None
        self.norm_after_rope = config.qk_norm_config["position"] == "after_rope"
        self.rotation = rotation_of(config)
        self.rope_values = config.position_config["rope_values"]
        self.temperature = QueryTemperature(config) if config.has_attention_temperature(layer_idx) else None
        # Values are clamped as they are projected, queries and keys there or after their norm.
        self.clip = Clamp(config.clip_qkv) if config.clip_qkv is not None else None
        self.clip_after_norm = has_norm and config.clip_qkv_position == "after_norm"
        # Later layers read what this one caches.
        self.stores_shared_kv = bool(config.num_kv_shared_layers) and config.kv_sharing_modes[layer_idx] == "store"

    def build_keys(self, config: ZooConfig, layer_idx: int) -> None:
        """What makes keys and values; nothing in a layer that reads those of another."""
        kv_heads, hidden, bias = config.num_key_value_heads, config.hidden_size, config.attention_bias
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias)
        width = kv_heads * self.value_width
        self.v_proj = None if config.attention_k_eq_v else nn.Linear(hidden, width, bias=bias)
        self.k_norm = make_qk_norm(config, kv_heads) if config.has_qk_norm(layer_idx) else None
        self.v_norm = RMSNorm(self.value_width, config.norm_eps, affine=False) if config.value_norm else None
        self.value_is_key = config.attention_k_eq_v and config.position_config["rope_values"]
        self.key_multiplier, self.value_scale = config.mup_multipliers["key"], config.attention_value_scale

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        shared_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # project → norm and rotate → cache → attend → gate → o_proj
        query, gate = self.queries(hidden_states, position_embeddings, position_ids)
        key, value = self.update_cache(hidden_states, position_embeddings, past_key_values, shared_key_values)
        attn_output, weights = self.attend(query, key, value, attention_mask, position_ids=position_ids, **kwargs)
        if self.rope_values and position_embeddings is not None:
            attn_output = apply_rotary(attn_output, backwards(position_embeddings), **self.rotation)
        return self.output(attn_output, hidden_states, gate), weights

    def queries(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        position_ids: torch.Tensor | None,
        source: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[B, T, D]` (or `query_source`) → queries `[B, H, T, d]`, normed and rotated; gate `[B, T, H, v]` or None."""
        source = self.query_source(hidden_states) if source is None else source
        query, gate = self.project_queries(source), None
        if self.clip is not None and not self.clip_after_norm:
            query = self.clip(query)
        query = query.view(*hidden_states.shape[:-1], -1, sum(self.query_parts))
        if self.gate_width:
            query, gate = query.split(self.query_parts, dim=-1)
        query = self.norm_and_rotate(query, self.q_norm, position_embeddings)
        if self.temperature is not None:
            query = self.temperature(query, position_ids)
        return query.transpose(1, 2), gate

    def keys_and_values(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, T, D]` → keys `[B, K, T, d]`, normed and rotated, and values `[B, K, T, v]`: what is cached."""
        key = self.k_proj(hidden_states)
        value = key if self.v_proj is None else self.v_proj(hidden_states)
        if self.key_multiplier is not None:
            key = key * self.key_multiplier
        if self.clip is not None:
            value = self.clip(value)
            key = key if self.clip_after_norm else self.clip(key)
        heads = (*hidden_states.shape[:-1], -1)
        key, value = key.view(*heads, self.head_dim), value.view(*heads, self.value_width)
        if self.v_norm is not None:
            value = self.v_norm(value)
        if self.value_scale is not None:
            value = value * self.value_scale
        key = self.norm_and_rotate(key, self.k_norm, position_embeddings)
        if self.rope_values and not self.value_is_key and position_embeddings is not None:
            value = apply_rotary(value, position_embeddings, **self.rotation)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        value = key if self.value_is_key else value
        if self.key_copies > 1:
            key, value = (own_part(x.repeat_interleave(self.key_copies, 1), self.q_proj, 1) for x in (key, value))
        return key, value

    def norm_and_rotate(
        self, states: torch.Tensor, norm: nn.Module | None, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> torch.Tensor:
        """Queries or keys `[B, T, h, d]`, normed before they are rotated (Qwen3) or after."""
        if norm is not None and not self.norm_after_rope:
            states = self.normalise(states, norm)
        if position_embeddings is not None:
            states = apply_rotary(states, position_embeddings, **self.rotation)
        if norm is not None and self.norm_after_rope:
            states = self.normalise(states, norm)
        return states

    def normalise(self, states: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """`norm(states)`, clamped behind the norm where the config says so (OLMoE)."""
        states = norm(states)
        return self.clip(states) if self.clip_after_norm else states

    def update_cache(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        past_key_values: Cache | None,
        shared_key_values: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts keys and values of these tokens into the cache → those of all tokens, `[B, K, S, d]`, `[B, K, S, v]`."""
        key, value = self.keys_and_values(hidden_states, position_embeddings)
        if past_key_values is not None and self.value_is_key and value is key:
            # One tensor that is both is kept once.
            key = value = past_key_values.update(key, value[..., :0], self.layer_idx)[0]
        elif past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.stores_shared_kv and shared_key_values is not None:
            shared_key_values.put(self.layer_idx, key, value)
        return key, value
