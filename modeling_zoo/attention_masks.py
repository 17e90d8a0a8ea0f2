"""One mask per distinct reach of a model, built by transformers' own builders."""

from typing import NamedTuple

import torch
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from .ops_attention_bands import band_of, sees_all
from .ops_dispatch import is_traced
from .recurrent_packing import create_full_mask, create_recurrent_mask

MASK_BUILDERS = {
    "full_attention": create_full_mask,
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


# What layers of one kind can differ in -> the field that says how far each of them sees.
SIZE_FIELDS = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    **dict.fromkeys(PATTERNS, "sparse_attention_stride"),
}


class MaskRule(NamedTuple):
    """One mask of a model: its name, the word or pattern that makes it, and the layer whose cache holds its keys, with
    that layer's own view of the config."""

    name: str
    kind: str
    layer_idx: int
    config: object


def kinds_of(config, layer_idx):
    """The words of the masks of layer `layer_idx`, or the pattern laid over it."""
    pattern, word = config.sparse_pattern_of(layer_idx), config.layer_types[layer_idx]
    return PARTS.get(word, (word,)) if pattern == "none" else (pattern,)


def mask_names(config):
    """For each layer the names of its masks: one, one for each part of a layer made of two mixers, or none.

    Layers that see the same share a name. It is the kind's, as in transformers, where all layers of that kind see
    equally far, else kind and number: "sliding_attention 512".
    """
    layers = [(config.per_layer_config[index], kinds_of(config, index)) for index in range(config.num_hidden_layers)]
    seen = [{kind: getattr(layer, SIZE_FIELDS.get(kind, ""), None) for kind in kinds} for layer, kinds in layers]
    sizes = {}
    for kind, size in (pair for kinds in seen for pair in kinds.items()):
        sizes.setdefault(kind, set()).add(size)
    return [tuple(k if len(sizes[k]) == 1 else f"{k} {size}" for k, size in kinds.items()) for kinds in seen]


def layer_mask(masks, names):
    """The mask of a layer with these `mask_names`; {kind: mask} for one made of two mixers, None for one without."""
    if len(names) == 1:
        return masks[names[0]]
    return {name.partition(" ")[0]: masks[name] for name in names} or None


def mask_plan(config, names):
    """The `MaskRule`s of a model whose layers have these `mask_names`."""
    rules = {}
    for layer_idx, own in enumerate(names):
        for name, kind in zip(own, kinds_of(config, layer_idx), strict=True):
            if name not in rules:
                source = config.kv_source_of(layer_idx)
                keys = layer_idx if source is None else source
                rules[name] = MaskRule(name, kind, keys, config.per_layer_config[layer_idx])
    return list(rules.values())


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

    Each is sized by a layer that uses it: the caches of two kinds, or of two windows, give different numbers of keys.
    Sparse patterns go by slot, so that padding takes part in the stride. With `rules`, the mask of many queries may be
    a `BandMask`, which is not held as a square. `position_ids` tell packed sequences apart where they jump, None: there
    are none. `plan` is what `mask_plan` says, where it is known already.
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
    for name, kind, layer_idx, layer in mask_plan(config, mask_names(config)) if plan is None else plan:
        if layer_idx >= depth:
            # Cut off since the plan was made.
            continue
        if plain and sees_all(layer, kind, layer_idx, inputs_embeds, attention_mask, past_key_values):
            masks[name] = None
            continue
        sized = {"config": layer, "layer_idx": layer_idx, **arguments}
        if kind in PATTERNS:
            overlay = PATTERNS[kind](layer.sparse_attention_stride)
            masks[name] = create_full_mask(**sized, **special, and_mask_function=overlay)
            continue
        band = band_of(layer, kind, layer_idx, **arguments) if plain else None
        masks[name] = MASK_BUILDERS[kind](**sized, **special) if band is None else band
    # It grows with every token, so it stays out of compiled graphs where nothing reads it.
    if config.position_embedding_type == "alibi" and attention_mask is not None and attention_mask.dim() == 2:
        masks[PADDING] = attention_mask
    return masks
