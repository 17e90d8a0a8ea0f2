"""Compressed attention: a window of tokens, and beside it entries that each stand for a window of older ones.

    x [B, T, D] ─┬─ q, k = v, rotated ────────────── the last tokens ────┐
                 └─ kv, gate ─ Σ softmax(gate) kv ── one entry a window ─┴─ attend ─ rotate back ─ o_proj

Keys are values at once, for tokens and entries alike. An entry is rotated by the position of its window's first token.
Heavily compressed attention has wide windows and reads all entries; compressed sparse attention has narrow ones that
overlap, and an indexer chooses which a query reads.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .cache_compressed import CompressedStream, compressed_streams
from .norms import RMSNorm
from .ops_attention_bands import AttentionMask
from .ops_attention_compressed import best_entries, compressed_attention, pool_windows, tokens_of
from .ops_attention_indexer import index_scores
from .ops_packing import PackedSequences
from .ops_rotary import apply_rotary, backwards
from .recurrent_rows import PaddedRows


class CompressorInputs(NamedTuple):
    """What is compressed: the layer's input `[B, T, D]`, (cos, sin) or None, and which are tokens, `[B, T]` or None for
    all."""

    hidden_states: torch.Tensor
    position_embeddings: tuple[torch.Tensor, ...] | None
    valid: torch.Tensor | None


class Compressor(nn.Module):
    """norm(Σ_j softmax_j(W_g x_j + b_j) ⊙ W_kv x_j) over the tokens of a window, rotated as its first token is.

    h heads of d channels, `[B, T, D]` → `[B, N, h, d]`. With `overlap` a window reads the one before it too, through
    channels of their own (DeepSeek-V4, §2.3.1 and §2.3.2).
    """

    def __init__(self, config: ZooConfig, heads: int, width: int, rate: int, overlap: bool, rotation: dict):
        super().__init__()
        self.heads, self.width, self.rate, self.overlap, self.rotation = heads, width, rate, overlap, rotation
        channels = heads * width * (1 + overlap)
        self.kv_proj = nn.Linear(config.hidden_size, channels, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, channels, bias=False)
        self.position_bias = nn.Parameter(torch.empty(rate, channels))
        self.kv_norm = RMSNorm(width, config.norm_eps, cast=config.precision["norm"])

    def initialize(self, std: float) -> None:
        init.zeros_(self.position_bias)

    def forward(self, inputs: CompressorInputs, stream: CompressedStream) -> tuple[torch.Tensor, torch.Tensor]:
        """All entries so far `[B, N, h, d]` and how many of them each token may read, `[B or 1, T]`."""
        hidden_states, tables, valid = inputs
        batch, length, _ = hidden_states.shape
        kv, gate = self.kv_proj(hidden_states), self.gate_proj(hidden_states)
        parts = (kv, gate, *(table.expand(batch, -1, -1) for table in (tables or ())[:2]))
        lead = self.rate if self.overlap else 0
        counts = stream.counts(valid, length, self.rate, lead, hidden_states.device)
        parts, held = stream.extend(parts, valid, self.before_the_first(parts, lead))
        entries = stream.close(parts, held, self.entries(parts, lead), self.rate, lead)
        return entries.unflatten(-1, (self.heads, self.width)), counts

    def before_the_first(self, parts: tuple[torch.Tensor, ...], lead: int) -> tuple[torch.Tensor, ...]:
        """What stands for the window before the first: `lead` tokens that get no weight."""
        kv, gate, *tables = (part.new_zeros(part.shape[0], lead, part.shape[2]) for part in parts)
        return kv, torch.full_like(gate, -torch.inf), *tables

    def entries(self, parts: tuple[torch.Tensor, ...], lead: int) -> torch.Tensor:
        """One entry for each whole window of `parts`, `[B, W, h · d]`."""
        kv, gate, *tables = parts
        pooled = pool_windows(kv, gate, self.position_bias, self.rate, self.overlap)
        pooled = self.kv_norm(pooled.unflatten(-1, (self.heads, self.width)))
        if tables:
            firsts = [table[:, lead :: self.rate][:, : pooled.shape[1]] for table in tables]
            pooled = apply_rotary(pooled, firsts, **self.rotation)
        return pooled.flatten(-2)


class HeavilyCompressedAttention(GroupedQueryAttention):
    """softmax(q [k, e]ᵀ · scale) [k, e] over the tokens k of a sliding window and the entries e of all windows of
    `heavily_compressed_rate` tokens that have ended (DeepSeek-V4, §2.3.2)."""

    rate, overlap = "heavily_compressed_attention", False

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.window = config.sliding_window
        self.build_compressors(config)

    def build_compressors(self, config: ZooConfig) -> None:
        """What makes the entries."""
        heads, rate = config.num_key_value_heads, config.compress_rates[self.rate]
        self.compressor = Compressor(config, heads, self.head_dim, rate, self.overlap, self.rotation)
        self.indexer = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: dict[str, AttentionMask | PaddedRows | PackedSequences] | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        shared_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`attention_mask` is {"sliding_attention": the window's, "linear_attention": which are tokens}."""
        masks = attention_mask or {}
        streams = compressed_streams(past_key_values, self.layer_idx)
        source = self.query_source(hidden_states)
        query, gate = self.queries(hidden_states, position_embeddings, position_ids, source)
        key, _ = self.update_cache(hidden_states, position_embeddings, past_key_values, None)
        valid = tokens_of(masks.get("linear_attention"), hidden_states)
        inputs = CompressorInputs(hidden_states, position_embeddings, valid)
        entries, counts = self.compressor(inputs, streams["compressor"])
        chosen = None if self.indexer is None else self.indexer.chooser(inputs, source, streams["indexer"])
        found = query, key, entries.transpose(1, 2), counts, masks.get("sliding_attention"), chosen
        attn_output, weights = compressed_attention(self, *found, position_ids=position_ids, **kwargs)
        if position_embeddings is not None:
            attn_output = apply_rotary(attn_output, backwards(position_embeddings), **self.rotation)
        return self.output(attn_output, hidden_states, gate), weights


class EntryIndexer(nn.Module):
    """Σ_h w_h · relu(q_h · e) ranks the entries of each query; the best `index_topk` are read (DeepSeek-V4, §2.3.1).

    Entries `[B, N, d]` of its own, from the same windows; q from what the main queries are projected from,
    `[B, T, h, d]`, w `[B, T, h]` from the layer's input.
    """

    def __init__(self, config: ZooConfig, rate: int, rotation: dict):
        super().__init__()
        self.heads, self.width, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.rotation = rotation
        self.compressor = Compressor(config, 1, self.width, rate, True, rotation)
        inputs = config.mla_config["query_rank"] or config.hidden_size
        self.wq_b = nn.Linear(inputs, self.heads * self.width, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    @torch.no_grad()
    def chooser(self, inputs: CompressorInputs, source: torch.Tensor, stream: CompressedStream) -> partial | None:
        """`choose` with the entries so far; None, for all of them, where there are no more than `index_topk`."""
        entries, _ = self.compressor(inputs, stream)
        return None if entries.shape[1] <= self.topk else partial(self.choose, inputs, source, entries.squeeze(2))

    @torch.no_grad()
    def choose(
        self, inputs: CompressorInputs, source: torch.Tensor, entries: torch.Tensor, block: slice, seen: torch.Tensor
    ) -> torch.Tensor:
        """Positions `[B, t, k]` of the entries `[B, N, d]` that the queries of `block` read, of those `seen`."""
        query = self.wq_b(source[:, block]).unflatten(-1, (self.heads, self.width))
        if inputs.position_embeddings is not None:
            tables = tuple(table[:, block] for table in inputs.position_embeddings[:2])
            query = apply_rotary(query, tables, **self.rotation)
        weights = self.weights_proj(inputs.hidden_states[:, block]).float() * (self.heads * self.width) ** -0.5
        return best_entries(index_scores(query, entries, weights), seen, self.topk)


class CompressedSparseAttention(HeavilyCompressedAttention):
    """The same over windows of `compressed_sparse_rate` tokens, each read with the one before it, and of their entries
    the `index_topk` that an indexer ranks highest (DeepSeek-V4, §2.3.1)."""

    rate, overlap = "compressed_sparse_attention", True

    def build_compressors(self, config: ZooConfig) -> None:
        super().build_compressors(config)
        self.indexer = EntryIndexer(config, config.compress_rates[self.rate], self.rotation)
