"""One mask per distinct reach of a model, built by transformers' own builders."""

import torch
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from .attention_bands import band_of, sees_all
from .packed_sequences import create_recurrent_mask
from .tracing import is_traced

MASK_BUILDERS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "chunked_attention": create_chunked_causal_mask,
    "indexed_attention": create_causal_mask,
    "linear_attention": create_recurrent_mask,
    "conv": create_recurrent_mask,
}
# Layers that need another mask than one of their own name.
PARTS = {
    "hybrid": ("full_attention", "linear_attention"),
    "hybrid_sliding": ("sliding_attention", "linear_attention"),
    "mlp": (),
    "moe": (),
}
# The 2-D padding mask, kept beside the built ones where someone passes masks on as a dict.
PADDING = "padding_mask"


def strided(stride):
    """The last `stride` tokens and every `stride`-th before them (Child et al. 2019, §4.2)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        distance = q_idx - kv_idx
        return (distance < stride) | (distance % stride == 0)

    return visible


def fixed(stride):
    """One's own block of `stride` tokens and the last token of every block before it (Child et al. 2019, §4.2)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        return (q_idx // stride == kv_idx // stride) | (kv_idx % stride == stride - 1)

    return visible


def banded(stride):
    """The last `stride` tokens: the local half of the pattern (Brown et al. 2020, §2.1)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        return q_idx - kv_idx < stride

    return visible


PATTERNS = {"strided": strided, "fixed": fixed, "banded": banded}


def mask_key(config, layer_idx):
    """The name of the mask that layer `layer_idx` uses: its word, or the pattern laid over it."""
    pattern = config.sparse_pattern_of(layer_idx)
    return config.layer_types[layer_idx] if pattern == "none" else pattern


def layer_mask(masks, key):
    """The mask of a layer with `mask_key` key; {word: mask} for a layer made of two mixers, None for one without."""
    if key not in PARTS:
        return masks[key]
    return {word: masks[word] for word in PARTS[key]} or None


def masks_needed(config):
    """[(name, index of the first layer that uses it)] of the masks of a model."""
    first = {}
    for layer_idx in range(config.num_hidden_layers):
        key = mask_key(config, layer_idx)
        for word in PARTS.get(key, (key,)):
            first.setdefault(word, layer_idx)
    return list(first.items())


def columns_so_far(config, attention_mask, inputs_embeds, past_key_values):
    """A padding mask without columns behind the last token of `inputs_embeds` `[B, T, D]`, `[B, S + T]`; any other mask
    as it is."""
    length = inputs_embeds.shape[1]
    if is_traced() or not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return attention_mask
    if attention_mask.shape[-1] <= length:
        return attention_mask
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    if isinstance(seen, torch.Tensor) and (seen.is_meta or (length == 1 and not config.position_ids_from_mask)):
        # Looking at a count on the device would wait for it at every token, and no layer reads such columns there.
        return attention_mask
    return attention_mask[:, : int(seen) + length]


def build_masks(
    config, inputs_embeds, attention_mask, past_key_values, position_ids=None, rules=True, plan=None, **kwargs
):
    """{mask name: mask} for `inputs_embeds` `[B, T, D]` and a padding mask `[B, S + T]` or a ready 4-D one.

    Sparse patterns go by slot, so that padding takes part in the stride. With `rules`, the mask of many queries may be
    a `BandMask`, which is not held as a square. `position_ids` tell packed sequences apart where they jump, None: there
    are none. `plan` is what `masks_needed` says, where it is known already.
    """
    if inputs_embeds.is_meta:
        # Without data there is nothing to hide but the future, and no number to look at.
        attention_mask = position_ids = None
    arguments = {
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    special = {name: part for name, part in kwargs.items() if part is not None}
    masks = {}
    plain = rules and not special
    depth = config.num_hidden_layers
    for word, layer_idx in plan or masks_needed(config):
        if layer_idx >= depth:
            # Cut off since the plan was made.
            continue
        if plain and sees_all(config, word, layer_idx, inputs_embeds, attention_mask, past_key_values):
            masks[word] = None
            continue
        layer = config.per_layer_config[layer_idx]
        if word in PATTERNS:
            overlay = PATTERNS[word](config.sparse_attention_stride)
            masks[word] = create_causal_mask(config=layer, **arguments, **special, and_mask_function=overlay)
            continue
        band = band_of(layer, word, layer_idx, **arguments) if plain else None
        masks[word] = MASK_BUILDERS[word](config=layer, **arguments, **special) if band is None else band
    # It grows with every token, so it stays out of compiled graphs where nothing reads it.
    if config.position_embedding_type == "alibi" and attention_mask is not None and attention_mask.dim() == 2:
        masks[PADDING] = attention_mask
    return masks
