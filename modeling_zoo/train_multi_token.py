"""The loss of the layers that predict further tokens.

    loss += λ / n · Σ_k loss_k      loss_k = Σ over positions i of cross entropy(logits_i^k, token i + k + 1) / N

N is the number of target tokens of the model's own loss, whatever k (DeepSeek-V3, arXiv 2412.19437, §2.2, eqs. 24-25).
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeModelOutputWithPast

from .embeddings import embeddings_of, read_positions
from .train_loss import count_targets, logits_and_loss, next_tokens


class MultiTokenLoss:
    """mtp.loss_coef times the mean loss of the prediction layers; z-loss and chunks are those of the model's own."""

    asks = {}

    @staticmethod
    def is_due(model: PreTrainedModel, record: bool | None) -> bool:
        """In training, unless λ is 0."""
        return model.training and bool(model.config.num_mtp_layers) and model.config.mtp["loss_coef"] > 0

    def add(
        self,
        loss: torch.Tensor,
        model: PreTrainedModel,
        outputs: MoeModelOutputWithPast,
        labels: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        loss_chunk_size: int | None = None,
        **call: Any,
    ) -> tuple[torch.Tensor, dict]:
        """(`loss` with it, nothing more to return); a row of tokens may hold several sequences (packing).

        Raises ValueError for tokens that continue a cache, and for masks made ahead.
        """
        hidden_states, config = outputs.last_hidden_state, model.config
        length = hidden_states.shape[1]
        refuse_parts(past_key_values, attention_mask, length)
        inputs_embeds = embeddings_of(model.model, input_ids, inputs_embeds)
        positions, places = read_positions(config, inputs_embeds, attention_mask, None, position_ids, **call)
        embeddings = model.model.embed(inputs_embeds, positions)
        targets, ignored = next_tokens(labels, call)
        call = {**call, "num_items_in_batch": count_targets(targets, ignored, call)}
        total = loss.new_zeros(())
        # A row of few tokens has no position for the last layers.
        for depth in range(min(config.num_mtp_layers, length - 1)):
            k = depth + 1
            mask, kept = both_attended(attention_mask, k), slice(0, length - k)
            own_places = None if places is None else places[:, kept]
            hidden_states = model.mtp(
                depth, embeddings[:, k:], hidden_states[:, kept], positions[:, k:], mask, own_places
            )
            wanted = targets[:, k:]
            if places is not None:
                together = (places[:, k:] - own_places == k).to(wanted.device)
                wanted = wanted.masked_fill(~together, ignored)
            if mask is not None and mask.dim() == 2:
                wanted = wanted.masked_fill(mask.to(wanted.device) == 0, ignored)
            call["shift_labels"] = wanted.contiguous()
            part = logits_and_loss(model, hidden_states, labels[:, kept], 0, loss_chunk_size, call)[1]
            total = total + part.to(total.device)
        return loss + config.mtp["loss_coef"] / config.num_mtp_layers * total, {}


def both_attended(mask: torch.Tensor | None, k: int) -> torch.Tensor | None:
    """A padding mask `[B, T]`, or a whole one `[B, 1, T, T]`, of the positions where neither the token nor the one `k`
    places on is padding."""
    if mask is None:
        return None
    if mask.dim() == 4:
        return mask[:, :, :-k, :-k]
    return mask[:, :-k] * mask[:, k:]


def refuse_parts(cache: Cache | None, mask: torch.Tensor | dict | None, length: int) -> None:
    """Raises ValueError where `length` tokens are a part of a sequence, or where masks are ready for the model's
    layers."""
    if cache is not None and cache.get_seq_length() > length:
        raise ValueError(
            "num_mtp_layers: prediction layers learn from whole sequences: leave past_key_values out, or set "
            "mtp.loss_coef to 0."
        )
    if isinstance(mask, dict):
        raise ValueError("num_mtp_layers: give attention_mask as a tensor: a dict of masks is for the model's layers.")
