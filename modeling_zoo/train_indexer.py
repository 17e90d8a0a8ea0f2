"""How an indexer learns: the softmax of its scores follows the attention of the layer it chooses for."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .attention_sparse_indexer import IndexerInputs, SharedIndices
from .ops_attention import repeat_kv
from .ops_attention_bands import AttentionMask
from .ops_attention_indexer import visible_keys
from .ops_attention_multi_query import shape_scores
from .ops_attention_sparse import chosen_keys

# Queries whose distributions over all keys are held at once.
TRAINING_BLOCK = 128


def is_learning(module: nn.Module) -> bool:
    """Whether indexers are trained in this forward of a model or a layer."""
    return module.training and torch.is_grad_enabled() and bool(module.config.indexer_loss_coef)


def record_indexer_loss(
    mixer: nn.Module,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    inputs: IndexerInputs,
    positions: torch.Tensor | None,
    shared_indices: SharedIndices | None,
) -> None:
    """Puts the loss of the indexer of `mixer` into `shared_indices`, where there is one and it is learning."""
    if mixer.indexer is not None and shared_indices is not None and is_learning(mixer):
        loss = indexer_loss(mixer, query, latent, rope_key, attention_mask, inputs, positions)
        shared_indices.losses[mixer.layer_idx] = loss


def indexer_loss(
    mixer: nn.Module,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    inputs: IndexerInputs,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """Mean over tokens of KL(attention summed over heads ‖ softmax of the index scores), a scalar (DeepSeek-V3.2,
    arXiv 2512.02556, §2.1.1).

    Over all visible keys without `positions` `[B, T, k]` (dense warm-up), else over the chosen ones. Its gradient
    reaches the indexer alone. Distributions are made for a block of queries at a time, and again for the gradient.
    Raises ValueError where this process has some of the heads only.
    """
    refuse_split_heads(mixer)
    with torch.no_grad():
        query = torch.cat(query, dim=-1)
        key = repeat_kv(mixer.expand(latent, rope_key)[0], mixer.num_key_value_groups)
    inputs = inputs._replace(hidden_states=inputs.hidden_states.detach(), query_source=inputs.query_source.detach())
    index_key = mixer.indexer.keys(inputs)
    length, keys = query.shape[2], key.shape[2]
    total, tokens = 0.0, 0.0
    for start in range(0, length, TRAINING_BLOCK):
        block = slice(start, min(start + TRAINING_BLOCK, length))
        visible = visible_keys(attention_mask, block, keys, query.device)
        # A token that does not see itself is padding.
        real = visible[:, 0].diagonal(offset=keys - length + start, dim1=-2, dim2=-1)
        if positions is not None:
            visible = visible & chosen_keys(positions[:, block], keys)
        target = attention_target(mixer, query[:, :, block], key, visible)
        scores = partial(mixer.indexer.scores, inputs, block=block)
        rows = checkpoint(_block_divergence, scores, index_key, target, visible[:, 0], use_reentrant=False)
        total = total + (rows * real).sum()
        tokens = tokens + real.expand_as(rows).sum()
    return total / tokens.clamp(min=1)


def _block_divergence(scores, index_key, target, visible):
    found = scores(index_key)
    return divergence(target, found.masked_fill(~visible, torch.finfo(found.dtype).min))


@torch.no_grad()
def attention_target(mixer: nn.Module, query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """What the mixer's attention gives to each visible key, summed over heads and normed to one: `[B, H, t, d]`,
    `[B, H, S, d]`, `[B, 1, t, S]` → `[B, t, S]`."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * mixer.scaling
    scores = shape_scores(scores, mask=visible, softcap=mixer.softcap)
    if mixer.sink_logits is not None:
        sinks = mixer.sink_logits.float().view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    summed = torch.softmax(scores, dim=-1)[..., : key.shape[2]].sum(dim=1)
    return summed / summed.sum(dim=-1, keepdim=True)


def divergence(target: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """KL(target ‖ softmax(scores)) of each row, `[B, T, S]` twice → `[B, T]`."""
    entropy = torch.special.xlogy(target, target).sum(dim=-1)
    return entropy - (target * torch.log_softmax(scores, dim=-1)).sum(dim=-1)


def refuse_split_heads(mixer: nn.Module) -> None:
    """Raises ValueError where tensor parallelism has given this process some of the heads only."""
    weight = mixer.kv_b_proj.weight
    if hasattr(weight, "to_local") and weight.placements[0].is_shard():
        raise ValueError(
            f"indexer_loss_coef={mixer.config.indexer_loss_coef} compares the indexer with the attention of all "
            "heads, which tensor parallelism splits over processes: set indexer_loss_coef=0, or train with FSDP."
        )
