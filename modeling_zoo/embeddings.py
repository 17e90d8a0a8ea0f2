"""Both ends of the model: from tokens to the residual stream, from there to logits; and the positions of a call."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .block_altup import AltUpEnds
from .block_hyper_connections import StreamHead
from .mixer import asked_part
from .norms import make_norm
from .ops_dispatch import refuse_empty
from .ops_packing import places_behind, starts_of_lengths
from .position_rotary import Rotations
from .position_tables import ADDED_POSITIONS, POSITION_BIASES, NoPositions

# Both ends of several residual streams.
STREAM_HEADS = {"hc_mult": StreamHead, "block_config.altup_num_inputs": AltUpEnds}


class ScaledEmbedding(nn.Embedding):
    """table[token] · scale, the scale rounded to the table's dtype first, `[B, T]` → `[B, T, D]` (Gemma)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, scale: float = 1.0):
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.scale = scale

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * torch.tensor(self.scale, dtype=self.weight.dtype)


def make_embedding(config: ZooConfig) -> nn.Embedding:
    """The token table `[V, embedding_size or D]`."""
    size = (config.vocab_size, config.output_width, config.pad_token_id)
    if config.precision["embedding_multiplier_in_weight_dtype"]:
        return ScaledEmbedding(*size, scale=config.embedding_multiplier)
    return nn.Embedding(*size)


def make_width_projection(inputs: int, outputs: int) -> nn.Linear:
    """A linear map where a narrow embedding meets the residual stream (OPT 350m)."""
    return nn.Linear(inputs, outputs, bias=False)


class Backbone:
    """What stands around the layers of a ZooModel, as its mixin: tokens → residual stream, and that → output."""

    def build_ends(self, config: ZooConfig) -> None:
        """The modules before and after the layers, under the names tools look for."""
        self.rotary_emb = Rotations(config)
        config, width = config.outside_layers(), config.hidden_size
        self.embed_tokens = make_embedding(config)
        self.project_in = (
            make_width_projection(config.output_width, width) if config.embedding_size is not None else None
        )
        self.embed_positions = ADDED_POSITIONS[config.position_embedding_type](config)
        self.embed_norm = make_norm(config, width) if config.embedding_norm else None
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        bias = POSITION_BIASES.get(config.position_embedding_type)
        self.position_bias = bias(config) if bias is not None else None
        self.hc_head = asked_part(STREAM_HEADS, config)
        self.norm = make_norm(config, width) if config.final_norm else nn.Identity()
        self.project_out = (
            make_width_projection(width, config.output_width) if config.embedding_size is not None else None
        )
        # A call of a module that does nothing takes as long as a small operation: what is not there is left out.
        scaled = config.embedding_multiplier != 1.0 and not config.precision["embedding_multiplier_in_weight_dtype"]
        self.embedding_multiplier = config.embedding_multiplier if scaled else None
        self.adds_positions = ADDED_POSITIONS[config.position_embedding_type] is not NoPositions
        self.residual_in_fp32 = config.precision["residual_in_fp32"]

    def embed(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Scale → projection → positions → norm → dropout, `[B, T, E]` → `[B, T, D]`, or `[B, T, N, D]`, where the
        residual stream or streams start."""
        hidden_states = inputs_embeds
        if self.embedding_multiplier is not None:
            hidden_states = hidden_states * self.embedding_multiplier
        if self.project_in is not None:
            hidden_states = self.project_in(hidden_states)
        if self.adds_positions:
            hidden_states = hidden_states + self.embed_positions(position_ids, hidden_states)
        if self.embed_norm is not None:
            hidden_states = self.embed_norm(hidden_states)
        if self.training:
            hidden_states = self.embed_dropout(hidden_states)
        if self.hc_head is not None:
            hidden_states = self.hc_head.spread(hidden_states)
        return self.as_residual(hidden_states)

    def as_residual(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """In the dtype of the residual stream."""
        return hidden_states.float() if self.residual_in_fp32 else hidden_states

    def finish(self, hidden_states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Norm → projection, `[B, T, D]` → `[B, T, E]`, in the dtype of what was embedded."""
        if self.hc_head is not None:
            hidden_states = self.hc_head(hidden_states)
        normed = self.norm(hidden_states)
        normed = normed.to(dtype) if self.residual_in_fp32 else normed
        return normed if self.project_out is None else self.project_out(normed)


def shape_logits(logits: torch.Tensor, config: ZooConfig) -> torch.Tensor:
    """logits / logits_scaling → cap · tanh(· / cap) → suppressed tokens at the smallest number, `[..., V]`.

    (Granite; Gemma 2; Chameleon's image tokens.)
    """
    if config.logits_scaling != 1.0:
        logits = logits / config.logits_scaling
    if config.final_logit_softcapping is not None:
        cap = config.final_logit_softcapping
        logits = torch.tanh(logits / cap) * cap
    if config.suppressed_token_ids:
        ids = torch.tensor(config.suppressed_token_ids, device=logits.device)
        logits = logits.index_fill(-1, ids, torch.finfo(logits.dtype).min)
    return logits


def embeddings_of(
    model: PreTrainedModel, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
) -> torch.Tensor:
    """`[B, T, E]` from tokens `[B, T]`, or as given; raises ValueError for both, neither, or no tokens."""
    if (input_ids is None) ^ (inputs_embeds is not None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    given = input_ids if inputs_embeds is None else inputs_embeds
    refuse_empty("input_ids" if inputs_embeds is None else "inputs_embeds", given)
    return model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


def positions_of(
    config: ZooConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
) -> torch.Tensor:
    """Positions `[1 or B, T]` of a call that names none: slots from what the cache has seen, or the count of attended
    tokens."""
    length, device = inputs_embeds.shape[1], inputs_embeds.device
    if (
        config.position_config["ids_from_mask"]
        and isinstance(attention_mask, torch.Tensor)
        and attention_mask.dim() == 2
    ):
        counted = attention_mask.long().cumsum(-1) * attention_mask.long() - 1
        # Padding stands before position 0 where a learned table has a row for it.
        return counted[:, -length:].clamp(min=-1 if config.position_config["offset"] else 0)
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(length, device=device) + seen).unsqueeze(0)


def read_positions(
    config: ZooConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Positions of a call, and those that tell packed sequences apart: None where nothing was said of any.

    What `cu_seq_lens_q` or `seq_idx` say goes before what positions say; without positions each sequence counts its own
    from 0. Raises ValueError where a recurrent layer would take for one sequence what they call several.
    """
    places = position_ids
    if cu_seq_lens_q is not None or seq_idx is not None:
        if attention_mask is None and past_key_values is None:
            places = places_behind(starts_of_lengths(inputs_embeds, cu_seq_lens_q, seq_idx))
            position_ids = places if position_ids is None else position_ids
        elif config.linear_attention_type is not None and inputs_embeds.shape[1] > 1:
            if seq_idx is not None or len(cu_seq_lens_q) > 2:
                raise ValueError(
                    "Packed sequences (cu_seq_lens_q, seq_idx) cannot continue a cache of a recurrent layer, nor stand "
                    "beside an attention mask: call without past_key_values and attention_mask."
                )
    if position_ids is None:
        position_ids = positions_of(config, inputs_embeds, attention_mask, past_key_values)
    return position_ids, places
