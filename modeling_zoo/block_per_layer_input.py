"""Per-layer embeddings: an embedding of the token for every layer."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .embeddings import ScaledEmbedding
from .mlp_dense import make_activation
from .norms import make_norm
from .platform_transformers import resized_embedding


class PerLayerEmbeddings(nn.Module):
    """(table[token] · √p + norm(W x · D^-½)) · 2^-½, one row of p channels for each layer (Gemma 3n, Gemma 4).

    Tokens `[B, T]` and their embeddings `[B, T, D]`, or streams `[B, T, N, D]` that start with them → `[B, T, L, p]`.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        config = config.outside_layers()
        self.layers, self.width = config.num_hidden_layers, config.hidden_size_per_layer_input
        self.embed_tokens_per_layer = ScaledEmbedding(
            config.vocab_size_per_layer_input, self.layers * self.width, config.pad_token_id, scale=self.width**0.5
        )
        self.per_layer_model_projection = nn.Linear(config.hidden_size, self.layers * self.width, bias=False)
        self.per_layer_projection_norm = make_norm(config, self.width)
        self.projection_scale = config.hidden_size**-0.5

    def rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, T]` → `[B, T, L, p]`: what `per_layer_inputs` beside embeddings has to be."""
        return self.embed_tokens_per_layer(input_ids).unflatten(-1, (self.layers, self.width))

    def forward(
        self, input_ids: torch.Tensor | None, hidden_states: torch.Tensor, per_layer_inputs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[B, T]`, `[B, T, D]` → `[B, T, L, p]`; raises ValueError unless given either tokens or
        `per_layer_inputs`."""
        if input_ids is None and per_layer_inputs is None:
            raise ValueError(
                "A model with hidden_size_per_layer_input looks tokens up a second time: give input_ids, or "
                "per_layer_inputs [B, T, L, p] beside inputs_embeds."
            )
        if input_ids is not None and per_layer_inputs is not None:
            raise ValueError("per_layer_inputs goes with inputs_embeds: leave it out beside input_ids.")
        if hidden_states.dim() == 4:
            hidden_states = hidden_states[:, :, 0]
        rows = self.rows(input_ids) if per_layer_inputs is None else per_layer_inputs
        context = self.per_layer_model_projection(hidden_states.to(rows.dtype)) * self.projection_scale
        context = self.per_layer_projection_norm(context.unflatten(-1, (self.layers, self.width)))
        return (context + rows) * 2.0**-0.5


class PerLayerInput(nn.Module):
    """norm(W (act(G x) · row)), a layer's row `[B, T, p]` gated by the residual stream `[B, T, D]` → `[B, T, D]`."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        width = config.hidden_size_per_layer_input
        self.per_layer_input_gate = nn.Linear(config.hidden_size, width, bias=False)
        self.per_layer_projection = nn.Linear(width, config.hidden_size, bias=False)
        self.post_per_layer_input_norm = make_norm(config, config.hidden_size)
        self.act_fn = make_activation(config)

    def forward(self, hidden_states: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        row = row.to(hidden_states.device)
        gated = self.act_fn(self.per_layer_input_gate(hidden_states.to(row.dtype))) * row
        return self.post_per_layer_input_norm(self.per_layer_projection(gated))


class AltUpInput(PerLayerInput):
    """What a layer's row gives to all streams but the first, gated by the computed one times a weight for each channel,
    `[B, T, N, D]` and `[B, T, p]` → `[B, T, N, D]`."""

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        own, size = config.block_config, config.hidden_size
        self.count, self.active = own["altup_num_inputs"], own["altup_active_idx"]
        self.correct_output_scale = nn.Parameter(torch.empty(size)) if own["altup_correct_scale"] else None

    def initialize(self, std: float) -> None:
        if self.correct_output_scale is not None:
            init.ones_(self.correct_output_scale)

    def forward(self, hidden_states: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        stream = hidden_states[:, :, self.active]
        if self.correct_output_scale is not None:
            stream = stream * self.correct_output_scale
        given = super().forward(stream, row).unsqueeze(2)
        return torch.cat((torch.zeros_like(given), given.expand(-1, -1, self.count - 1, -1)), dim=2)


def resize_rows(model: PreTrainedModel, *sizes: Any) -> None:
    """The second table follows when the vocabulary is resized, by the model's own way of resizing a table."""
    embeddings = model.base_model.per_layer_embeddings
    if embeddings is None:
        return
    old = embeddings.embed_tokens_per_layer
    new = resized_embedding(model, old, *sizes)
    new.requires_grad_(old.weight.requires_grad)
    embeddings.embed_tokens_per_layer = new
    model.config.vocab_size_per_layer_input = new.num_embeddings


PER_LAYER_EMBEDDINGS = {"hidden_size_per_layer_input": PerLayerEmbeddings}
PER_LAYER_INPUTS = {"hidden_size_per_layer_input": PerLayerInput}
# Tables that follow when the vocabulary is resized.
RESIZED = {"hidden_size_per_layer_input": resize_rows}
