"""Multi-head latent attention: what is cached is one small latent per token, not keys and values per head.

    x [B, T, D]
      → q_a → norm → q_b (or q_proj)    queries q [B, H, T, n] and q_r [B, H, T, r]
      → kv_a → norm                     latent l [B, 1, T, c] and rope key r [B, 1, T, r]
      → rotate                          q_r and r
      → cache                           l and r of all tokens so far: c + r numbers a token, whatever the heads
      → attend                          head h has the key [U_h l, r] and the value V_h l
      → o_proj                          [B, T, D]

There are two ways to attend, with one result (DeepSeek-V2, arXiv 2405.04434, §2.1.2):

    expanded   softmax([q, q_r] [U l, r]ᵀ) V l       kv_b makes keys and values of every head, then as usual
    absorbed   V softmax([Uᵀ q, q_r] [l, r]ᵀ) l      as q · (U l) = (Uᵀ q) · l, U can go into the query, V onto the
                                                      output: then all heads read one key [l, r] and one value l

Expanding costs a product per key and head, absorbing one per query and head over wider keys: a prompt expands, a
decoded token absorbs. `ops_attention_latent.py` has both side by side, and the choice.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import QueryTemperature, SoftmaxAttention
from .attention_gates import query_gate_width
from .cache_growing import refuse_keys_per_head
from .norms import RMSNorm, make_qk_norm
from .ops_attention_bands import AttentionMask
from .ops_attention_latent import keys_and_values, latent_attention, split_heads
from .ops_rotary import apply_rotary

# Queries without and with rotation, gate or None, latent, rope key, and what the queries were projected from.
LatentParts = tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]


def make_latent_norm(config: ZooConfig, rank: int) -> RMSNorm | None:
    """The norm of a latent `[..., rank]`, None where the config has none."""
    return RMSNorm(rank, config.mla_config["norm_eps"]) if config.mla_config["norm"] else None


def split_channels(states: torch.Tensor, groups: int) -> torch.Tensor:
    """`[B, T, h, g · d]` → `[B, T, h · g, d]`: every group of channels as a head of its own."""
    return states.unflatten(-1, (groups, -1)).flatten(2, 3)


def join_channels(states: torch.Tensor, groups: int) -> torch.Tensor:
    """The inverse of `split_channels`."""
    return states.unflatten(2, (-1, groups)).flatten(3)


class LatentAttention(SoftmaxAttention):
    """softmax([q, q_r] [U l, r]ᵀ · scale) V l: every head's key and value are maps of one latent l (DeepSeek-V2, §2.1).

    `kv_b_proj` holds U and V of each of K key-value heads, one above the other: `[K · (n + v), c]`. Latent and rope key
    are what a cache layer calls keys and values. (DeepSeek-V2 and V3, Kimi K2, GLM-4.7, LongCat.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        heads, kv_heads, hidden = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
        self.num_heads, self.num_key_value_groups = heads, heads // kv_heads
        self.rank, self.nope, self.rope = config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_width = config.v_head_dim
        # Channels of a head in its query projection: without rotation, with it, those of its gate.
        self.query_parts = (self.nope, self.rope, query_gate_width(config))
        self.build_queries(config, heads * sum(self.query_parts))
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=config.attention_bias)
        self.kv_a_layernorm = make_latent_norm(config, self.rank)
        self.k_rope_layernorm = None
        if config.mla_config["rope_key_norm"]:
            self.k_rope_layernorm = RMSNorm(self.rope, config.mla_config["norm_eps"])
        self.kv_b_proj = nn.Linear(self.rank, kv_heads * (self.nope + self.value_width), bias=False)
        self.build_output(config)
        self.query_scale = (hidden / config.q_lora_rank) ** 0.5 if config.mla_config["scale_q_lora"] else None
        self.latent_scale = (hidden / self.rank) ** 0.5 if config.mla_config["scale_kv_lora"] else None
        self.temperature = QueryTemperature(config) if config.has_attention_temperature(layer_idx) else None
        self.rope_heads, has_norm = config.mla_config["rope_heads"], config.has_qk_norm(layer_idx)
        # Queries and the shared key as heads of this width: each has a norm, and a rotation, of its own.
        width = config.rope_head_width
        self.q_norm = make_qk_norm(config, heads * self.rope_heads, width, of_queries=True) if has_norm else None
        self.k_norm = make_qk_norm(config, self.rope_heads, width) if has_norm else None
        self.norm_after_rope = config.qk_norm_config["position"] == "after_rope"
        table = config.rope_tables.get(config.rope_table_of(layer_idx), {})
        whole = table.get("partial_rotary_factor", 1.0) == 1.0
        upcast = config.precision["rope"] == "float32_qk"
        self.rotation = {"interleave": config.rope_interleave, "upcast": upcast, "whole": whole}

    def build_queries(self, config: ZooConfig, width: int) -> None:
        """One projection to the queries, or two with a norm between them."""
        self.ranked, self.q_a_layernorm = config.q_lora_rank is not None, None
        self.reads_raw = config.mla_config["raw_query_latent"]
        if self.ranked:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=config.attention_bias)
            self.q_a_layernorm = make_latent_norm(config, config.q_lora_rank)
            given = 2 * config.q_lora_rank if self.reads_raw else config.q_lora_rank
            self.q_b_proj = nn.Linear(given, width, bias=config.mla_config["query_bias"])
        else:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=config.mla_config["query_bias"])

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, gate, latent, rope_key, _ = self.project(hidden_states, position_embeddings, position_ids)
        latent, rope_key = self.update_cache(latent, rope_key, past_key_values)
        kwargs["position_ids"] = position_ids
        attn_output, weights = latent_attention(
            self, query, latent, rope_key, attention_mask, past_key_values, **kwargs
        )
        return self.output(attn_output, hidden_states, gate), weights

    def project(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        position_ids: torch.Tensor | None,
    ) -> LatentParts:
        """`[B, T, D]` → queries (`[B, H, T, n]`, `[B, H, T, r]`), gate `[B, T, H, v]` or None, latent `[B, 1, T, c]`
        and rope key `[B, 1, T, r]` of these tokens, and what the queries were projected from `[B, T, q]`."""
        low_rank = self.q_a_proj(hidden_states) if self.ranked else hidden_states
        return self.split(low_rank, self.kv_a_proj_with_mqa(hidden_states), position_embeddings, position_ids)

    def split(
        self,
        low_rank: torch.Tensor,
        latent_and_rope: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        position_ids: torch.Tensor | None,
    ) -> LatentParts:
        """`project` from what q_a and kv_a gave."""
        nope, rope, gate, query_source = self.queries(low_rank)
        latent, rope_key = self.latents(latent_and_rope)
        rope, rope_key = self.norm_and_rotate(rope, rope_key, position_embeddings)
        if self.temperature is not None:
            nope, rope = self.temperature(nope, position_ids), self.temperature(rope, position_ids)
        query = nope.transpose(1, 2), rope.transpose(1, 2)
        return query, gate, latent.unsqueeze(1), rope_key.transpose(1, 2), query_source

    def norm_and_rotate(
        self, rope: torch.Tensor, rope_key: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What rotates of the queries `[B, T, H, r]` and of the key `[B, T, 1, r]`, normed before it or after."""
        if self.rope_heads > 1:
            rope, rope_key = (split_channels(states, self.rope_heads) for states in (rope, rope_key))
        if self.q_norm is not None and not self.norm_after_rope:
            rope, rope_key = self.q_norm(rope), self.k_norm(rope_key)
        if position_embeddings is not None:
            # The heads' queries and the one key they share are rotated in one go.
            together = torch.cat((rope, rope_key), dim=2)
            together = apply_rotary(together, position_embeddings, **self.rotation)
            rope, rope_key = together.split((rope.shape[2], rope_key.shape[2]), dim=2)
        if self.q_norm is not None and self.norm_after_rope:
            rope, rope_key = self.q_norm(rope), self.k_norm(rope_key)
        if self.rope_heads > 1:
            rope, rope_key = (join_channels(states, self.rope_heads) for states in (rope, rope_key))
        return rope, rope_key

    def queries(self, low_rank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """q_a's output, `[B, T, D]` in a layer without → queries `[B, T, H, n]` and `[B, T, H, r]`, gate `[B, T, H, v]`
        or None, what they were projected from."""
        source = low_rank if self.q_a_layernorm is None else self.q_a_layernorm(low_rank)
        given = torch.cat((source, low_rank), dim=-1) if self.reads_raw else source
        query = self.q_b_proj(given) if self.ranked else self.q_proj(given)
        query = query.view(*query.shape[:-1], -1, sum(self.query_parts))
        nope, rope, gate = query.split(self.query_parts, dim=-1)
        if self.query_scale is not None:
            nope, rope = nope * self.query_scale, rope * self.query_scale
        return nope, rope, gate if self.query_parts[-1] else None, source

    def latents(self, latent_and_rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """kv_a's output `[B, T, c + r]` → latent `[B, T, c]`, normed, and rope key `[B, T, 1, r]`, not yet rotated."""
        latent, rope_key = latent_and_rope.split((self.rank, self.rope), dim=-1)
        latent = latent if self.kv_a_layernorm is None else self.kv_a_layernorm(latent)
        if self.k_rope_layernorm is not None:
            rope_key = self.k_rope_layernorm(rope_key)
        if self.latent_scale is not None:
            latent = latent * self.latent_scale
        return latent, rope_key.unsqueeze(2)

    def update_cache(
        self, latent: torch.Tensor, rope_key: torch.Tensor, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts these tokens into the cache → latents `[B, 1, S, c]` and rope keys `[B, 1, S, r]` of all tokens."""
        if past_key_values is None:
            return latent, rope_key
        refuse_keys_per_head(past_key_values, self.layer_idx)
        # Under autocast norms give float32; the two are stored side by side.
        return past_key_values.update(latent.to(rope_key.dtype), rope_key, self.layer_idx)

    def expand(self, latent: torch.Tensor, rope_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys `[B, K, S, n + r]` and values `[B, K, S, v]` of all key-value heads."""
        up_projected = split_heads(self.kv_b_proj(latent), self.nope + self.value_width)
        key, value = keys_and_values(up_projected, rope_key if self.rope else None, self.nope)
        return key, value
