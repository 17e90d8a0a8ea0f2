"""DeepSeek sparse attention: latent attention in which an indexer chooses the keys that a query reads."""

from functools import partial

import torch

from .attention_latent import LatentAttention, shared_parts
from .attention_sparse_indexer import LightningIndexer
from .ops_attention_bands import mask_rows, num_visible_keys
from .ops_attention_latent import into_latent, out_of_latent
from .ops_attention_sparse import causal_keys, chosen_keys, take_rows, visible_keys
from .ops_attention_triton import split_decode, wants_kernels
from .train_indexer import indexer_loss

# Queries that are masked and read together; elements of gathered latents held at once.
READING_BLOCK = 512
MOST_GATHERED = 2**24


class IndexedAttention(LatentAttention):
    """Latent attention over the `index_topk` keys its indexer ranks highest (DeepSeek-V3.2, arXiv 2512.02556, §2.1).

    With no more keys than that it is latent attention. Otherwise the chosen latents are gathered and read in absorbed
    form, which costs k per query whatever the length; or, where many queries share the cost of expanding all keys, the
    rest is masked. A layer without an indexer reads what the last layer with one chose (GLM-5, arXiv 2603.12201).
    """

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.source = config.indexer_of(layer_idx)
        self.indexer = LightningIndexer(config) if self.source == layer_idx else None

    def mix(self, query, latent, rope_key, attention_mask, past_key_values, inputs, shared_indices=None, **kwargs):
        positions = self.positions(attention_mask, past_key_values, inputs, shared_indices)
        if self.training and torch.is_grad_enabled() and self.indexer is not None and self.config.indexer_loss_coef:
            loss = indexer_loss(self, query, latent, rope_key, attention_mask, inputs, positions)
            if shared_indices is not None:
                shared_indices.losses[self.layer_idx] = loss
        if positions is None:
            return super().mix(query, latent, rope_key, attention_mask, past_key_values, inputs, **kwargs)
        if attention_mask is None and query[0].shape[2] > 1:
            # Causal from the first key on: a cache of fixed size has nothing behind the last query.
            latent, rope_key = (part[:, :, : query[0].shape[2]] for part in (latent, rope_key))
        weight = self.gatherable(query[0], latent, positions, attention_mask, **kwargs)
        if weight is not None:
            return self.gathered(query, latent, rope_key, attention_mask, past_key_values, positions, weight), None
        return self.masked(query, latent, rope_key, attention_mask, past_key_values, positions, **kwargs)

    def positions(self, attention_mask, past_key_values, inputs, shared_indices):
        """Positions `[B, T, k]` for each query, None for all; raises ValueError for a shared layer on its own."""
        if self.indexer is None:
            if shared_indices is None:
                raise ValueError(f"Layer {self.layer_idx} has no indexer and was given no shared_indices.")
            positions = shared_indices.of(self.source)
            return positions if positions is None else positions.to(inputs[0].device)
        positions = self.indexer(
            inputs, attention_mask, past_key_values, self.layer_idx, choose=not self.config.indexer_warmup
        )
        if shared_indices is not None:
            shared_indices.positions[self.layer_idx] = positions
        return positions

    # -- gathered ------------------------------------------------------------------------------------------------------

    def gatherable(self, query, latent, positions, attention_mask, position_bias=None, **kwargs):
        """kv_b's effective matrix where gathering the chosen latents is possible and cheaper than masking, else None.

        The plain backend masks: it is what the others are compared with, and shows weights for all keys. Gradients
        would have to keep every gathered latent.
        """
        plain = self.config._attn_implementation == "eager"
        if plain or torch.is_grad_enabled() or position_bias is not None:
            return None
        queries, keys = query.shape[2], latent.shape[2]
        causal = attention_mask is None and queries > 1
        pairs = queries * keys // 2 if causal else queries * keys, queries * positions.shape[-1]
        return self.matrix_if_cheap(query, latent, pairs)

    def gathered(self, query, latent, rope_key, attention_mask, past_key_values, positions, weight):
        """Attention over the chosen latents alone, `[B, T, H, v]`: each query has keys of its own."""
        maps = self.maps(weight)
        query = into_latent(query[0], maps, self.nope), query[1]
        parts = shared_parts(latent, rope_key, past_key_values, self.layer_idx)
        batch, heads, length, _ = query[0].shape
        if length == 1 and len(parts) == 1 and self.kernel_reads(latent):
            context = self.read_chosen(query, parts[0], positions, attention_mask)
            return out_of_latent(context, maps, self.nope).transpose(1, 2)
        per_query = batch * positions.shape[-1] * (self.rank + self.rope)
        step = max(1, MOST_GATHERED // per_query)
        contexts = []
        for start in range(0, length, step):
            block = slice(start, min(start + step, length))
            here = positions[:, block]
            chosen = [take_rows(part, here).flatten(0, 1) for part in parts]
            visible = self.chosen_visible(attention_mask, here, block, length, latent.shape[2])
            rows = [part[:, :, block].transpose(1, 2).flatten(0, 1).unsqueeze(2) for part in query]
            context, _ = self.read(rows, chosen, mask=visible)
            contexts.append(context.view(batch, -1, heads, self.rank))
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1)
        return out_of_latent(context.transpose(1, 2), maps, self.nope).transpose(1, 2)

    def kernel_reads(self, latent):
        """Whether the decode kernel is asked for and computes all that this layer needs."""
        return wants_kernels(latent) and self.sink_logits is None and self.softcap is None and not self.upcast

    def read_chosen(self, query, rows, positions, attention_mask):
        """One query per head over the chosen of `rows` `[B, S, c + r]` where they lie, `[B, H, 1, c]`."""
        visible = self.chosen_visible(attention_mask, positions, slice(0, 1), 1, rows.shape[1])
        key, visible = rows.unsqueeze(1), None if visible is None else visible[:, 0, 0]
        latent_query = torch.cat(query, dim=-1).transpose(1, 2)
        context = split_decode(latent_query, key, key[..., : self.rank], self.scaling, positions[:, 0], visible)
        return context.transpose(1, 2)

    def chosen_visible(self, attention_mask, positions, block, length, keys):
        """Whether a chosen key may be seen, `[B · t, 1, 1, k]`: where few are visible, others fill up the choice."""
        if attention_mask is not None:
            seen = visible_keys(mask_rows(attention_mask, block, keys, positions.device)[:, 0])
            seen = seen.expand(positions.shape[0], -1, -1)
            seen = seen.gather(-1, positions.long())
        elif length > 1:
            queries = torch.arange(block.start, block.stop, device=positions.device)
            seen = positions <= queries[:, None]
        else:
            return None
        return seen.flatten(0, 1)[:, None, None]

    # -- masked --------------------------------------------------------------------------------------------------------

    def masked(self, query, latent, rope_key, attention_mask, past_key_values, positions, position_bias=None, **kwargs):
        """Attention over all keys with those not chosen hidden, absorbed or expanded, in blocks of queries."""
        weight = self.absorbable(query[0], latent, attention_mask, past_key_values)
        if weight is not None:
            length, keys = query[0].shape[2], latent.shape[2]
            mask = self.sparse_mask(attention_mask, positions, slice(0, length), keys, query[0].dtype)
            bias = {"position_bias": position_bias}
            return self.absorbed(query, latent, rope_key, mask, past_key_values, weight, **bias, **kwargs)
        read = partial(self.read_masked, attention_mask, positions, position_bias=position_bias, **kwargs)
        return self.over_heads(read, query, latent, rope_key, position_bias=position_bias)

    def read_masked(self, attention_mask, positions, query, key, value, position_bias=None, **kwargs):
        """Expanded queries, keys and values of some heads → (`[B, T, h, v]`, weights or None)."""
        length, keys = query.shape[2], key.shape[2]
        outputs, weights = [], []
        for start in range(0, length, READING_BLOCK):
            block = slice(start, min(start + READING_BLOCK, length))
            seen = num_visible_keys(attention_mask, block, keys, causal=attention_mask is None and length > 1)
            mask = self.sparse_mask(attention_mask, positions, block, seen, query.dtype)
            if position_bias is not None:
                rows = block if position_bias.shape[-2] > 1 else slice(None)
                kwargs["position_bias"] = position_bias[..., rows, :seen]
            read = self.attend_expanded(query[:, :, block], key[:, :, :seen], value[:, :, :seen], mask, **kwargs)
            outputs.append(read[0])
            weights.append(read[1])
        return torch.cat(outputs, dim=1), None if weights[0] is None else torch.cat(weights, dim=2)

    def sparse_mask(self, attention_mask, positions, block, keys, dtype):
        """The mask of the queries in `block` with the keys not chosen hidden, `[B, 1, t, keys]`, as the backend
        wants it."""
        allowed = chosen_keys(positions[:, block], keys)
        if attention_mask is None:
            if positions.shape[1] > 1:
                allowed = allowed & causal_keys(block.start, block.stop, keys, allowed.device)
            attention_mask = allowed
        else:
            rows = mask_rows(attention_mask, block, keys, allowed.device)
            if rows.dtype != torch.bool:
                return rows.masked_fill(~allowed, torch.finfo(rows.dtype).min)
            attention_mask = rows & allowed
        if self.config._attn_implementation == "eager":
            nothing = torch.zeros((), dtype=dtype, device=allowed.device)
            return nothing.masked_fill(~attention_mask, torch.finfo(dtype).min)
        return attention_mask
