"""How an indexer learns: its scores follow where attention itself looks."""

import torch
from torch.utils.checkpoint import checkpoint

from .ops_attention import repeat_kv
from .ops_attention_bands import mask_rows
from .ops_attention_latent import shaped_scores
from .ops_attention_sparse import causal_keys, chosen_keys, divergence, visible_keys

# Queries whose distributions over all keys are held at once.
TRAINING_BLOCK = 128


def wants_indexer_loss(model, labels):
    """Whether this forward of `model` is to add the loss of its indexers."""
    return labels is not None and model.training and torch.is_grad_enabled() and bool(model.config.indexer_loss_coef)


def add_indexer_loss(loss, config, shared_indices, share):
    """`loss` plus indexer_loss_coef · the mean over the layers with an indexer, times the `share` of the accumulated
    batch that is here: each part's mean counts by its targets."""
    return loss + config.indexer_loss_coef * (shared_indices.mean_loss().to(loss.device) * share)


def indexer_loss(mixer, query, latent, rope_key, attention_mask, inputs, positions):
    """Mean over tokens of KL(attention summed over heads ‖ softmax of the index scores), a scalar (DeepSeek-V3.2,
    arXiv 2512.02556, §2.1.1).

    Over all visible keys without `positions` `[B, T, k]` (dense warm-up), else over the chosen ones. Its gradient
    reaches the indexer alone. In blocks of queries, computed again for the gradient. Raises ValueError where this
    process has some of the heads only.
    """
    if hasattr(mixer.kv_b_proj.weight, "to_local") and mixer.kv_b_proj.weight.placements[0].is_shard():
        raise ValueError(
            f"indexer_loss_coef={mixer.config.indexer_loss_coef} compares the indexer with the attention of all heads, "
            "which tensor parallelism splits over processes: set indexer_loss_coef=0, or train with FSDP."
        )
    with torch.no_grad():
        query = torch.cat(query, dim=-1)
        key = repeat_kv(mixer.expand(latent, rope_key)[0], mixer.num_key_value_groups)
    hidden_states, compressed, position_embeddings = inputs
    inputs = hidden_states.detach(), compressed.detach(), position_embeddings
    index_key = mixer.indexer.keys(inputs[0], position_embeddings)
    length, keys = query.shape[2], key.shape[2]
    total, tokens = 0.0, 0.0
    for start in range(0, length, TRAINING_BLOCK):
        block = slice(start, min(start + TRAINING_BLOCK, length))
        seen = seen_keys(attention_mask, block, keys, query.device)
        # A token that does not see itself is padding.
        real = seen[:, 0].diagonal(offset=keys - length + start, dim1=-2, dim2=-1)
        if positions is not None:
            seen = seen & chosen_keys(positions[:, block], keys)
        target = attention_target(mixer, query[:, :, block], key, seen)
        arguments = (inputs, index_key, block, target, seen[:, 0])
        rows = checkpoint(block_divergence, mixer.indexer, *arguments, use_reentrant=False)
        total = total + (rows * real).sum()
        tokens = tokens + real.expand_as(rows).sum()
    return total / tokens.clamp(min=1)


def seen_keys(attention_mask, block, keys, device):
    """The keys that the queries in `block` may see, `[B or 1, 1, t, S]`, as booleans."""
    if attention_mask is None:
        return causal_keys(block.start, block.stop, keys, device)
    return visible_keys(mask_rows(attention_mask, block, keys, device))


@torch.no_grad()
def attention_target(mixer, query, key, seen):
    """Attention `[B, H, t, S]` of the mixer over the seen keys, summed over heads and normed to one, `[B, t, S]`."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * mixer.scaling
    scores = shaped_scores(scores, mask=seen, softcap=mixer.softcap)
    if mixer.sink_logits is not None:
        sinks = mixer.sink_logits.float().view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    summed = torch.softmax(scores, dim=-1)[..., : key.shape[2]].sum(dim=1)
    return summed / summed.sum(dim=-1, keepdim=True)


def block_divergence(indexer, inputs, index_key, block, target, seen):
    """The divergence of each query in `block`, `[B, t]`."""
    scores = indexer.scores(inputs, index_key, block)
    return divergence(target, scores.masked_fill(~seen, torch.finfo(scores.dtype).min))
