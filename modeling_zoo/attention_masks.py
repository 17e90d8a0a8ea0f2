"""Which keys each layer sees, by its layer type: one mask for all layers that see the same.

        full_attention  sliding_attention  chunked_attention       strided        fixed          banded
                        sliding_window=3   attention_chunk_size=3  sparse_attention_stride=3
      k 0 1 2 3 4 5     0 1 2 3 4 5        0 1 2 3 4 5             0 1 2 3 4 5    0 1 2 3 4 5    0 1 2 3 4 5
    q 0 x               x                  x                       x              x              x
      1 x x             x x                x x                     x x            x x            x x
      2 x x x           x x x              x x x                   x x x          x x x          x x x
      3 x x x x           x x x                  x                 x x x x            x x          x x x
      4 x x x x x           x x x                x x                 x x x x          x x x          x x x
      5 x x x x x x           x x x              x x x                 x x x x        x x x x          x x x

A token in a sliding window sees itself and the `sliding_window` - 1 before it. `sparse_attention_pattern` lays one of
the last three over a full layer. hybrid_sliding is a sliding window beside a recurrence, hybrid full attention beside
one; recurrences get a padding mask `[B, T]`. The masks themselves are made by transformers' own builders.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from configuration_zoo import ZooConfig

from .ops_attention import backend_mask, compact_mask, trim_padding_mask
from .ops_attention_bands import AttentionMask
from .ops_packing import packed_sequences, within_sequences
from .recurrent_rows import create_recurrent_mask


def create_full_mask(
    config: ZooConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | BlockMask | None:
    """Of layers that see every token in both directions: transformers' own mask, which knows of no packed sequences; so
    they are a rule on top of it."""
    if attention_mask is None and past_key_values is None:
        packed = packed_sequences(position_ids, inputs_embeds.shape[0])
        if packed is not None:
            kwargs["and_mask_function"] = within_sequences(packed, kwargs.get("and_mask_function"))
    arguments = (config, inputs_embeds, attention_mask, past_key_values)
    return create_causal_mask(*arguments, position_ids=position_ids, **kwargs)


MASK_BUILDERS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "chunked_attention": create_chunked_causal_mask,
    "indexed_attention": create_causal_mask,
    "linear_attention": create_recurrent_mask,
    "conv": create_recurrent_mask,
}
# Layer types that need other masks than one of their own name.
PARTS = {
    "hybrid": ("full_attention", "linear_attention"),
    "hybrid_sliding": ("sliding_attention", "linear_attention"),
    # Which are tokens, to be compressed.
    "compressed_sparse_attention": ("sliding_attention", "linear_attention"),
    "heavily_compressed_attention": ("sliding_attention", "linear_attention"),
    "moe": (),
}
# The 2-D padding mask, kept beside the built ones where someone passes masks on as a dict.
PADDING = "padding_mask"


def strided(stride: int) -> Callable:
    """The last `stride` tokens and every `stride`-th before them (Child et al. 2019, §4.2)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        distance = q_idx - kv_idx
        return (distance < stride) | (distance % stride == 0)

    return visible


def fixed(stride: int) -> Callable:
    """A token's own block of `stride` tokens and the last token of every block before it (Child et al. 2019, §4.2)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        return (q_idx // stride == kv_idx // stride) | (kv_idx % stride == stride - 1)

    return visible


def banded(stride: int) -> Callable:
    """The last `stride` tokens: the local half of the pattern (Brown et al. 2020, §2.1)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        return q_idx - kv_idx < stride

    return visible


PATTERNS = {"strided": strided, "fixed": fixed, "banded": banded}


# Layers that see a number of tokens, or in a pattern -> the field with that number.
SIZE_FIELDS = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    **dict.fromkeys(PATTERNS, "sparse_attention_stride"),
}


class MaskRule(NamedTuple):
    """One mask of a model."""

    name: str
    # The layer type or the pattern that makes it, and how many tokens that lets a query see: None for all.
    kind: str
    window: int | None
    # The layer whose cache holds its keys.
    layer_idx: int
    # The config as one of its layers sees it.
    config: object


def kinds_of(config: ZooConfig, layer_idx: int) -> tuple[str, ...]:
    """The layer types whose masks layer `layer_idx` needs, or the pattern that is laid over it."""
    pattern, layer_type = config.sparse_pattern_of(layer_idx), config.layer_types[layer_idx]
    return PARTS.get(layer_type, (layer_type,)) if pattern == "none" else (pattern,)


def window_of(config: ZooConfig, kind: str) -> int | None:
    """How many tokens a query sees in a mask of `kind`: the window, the chunk or the stride; None for all."""
    return getattr(config, SIZE_FIELDS[kind]) if kind in SIZE_FIELDS else None


def mask_names(config: ZooConfig) -> list[tuple[str, ...]]:
    """For each layer the names of its masks: one, one for each part of a layer made of two mixers, or none.

    Layers that see the same share a name. It is the kind, as in transformers, where all layers of a type have one
    window; else kind and window: "sliding_attention 512".
    """
    windows = [
        {kind: window_of(config.per_layer_config[index], kind) for kind in kinds_of(config, index)}
        for index in range(config.num_hidden_layers)
    ]
    of_kind = {}
    for kind, window in (pair for layer in windows for pair in layer.items()):
        of_kind.setdefault(kind, set()).add(window)
    return [tuple(k if len(of_kind[k]) == 1 else f"{k} {size}" for k, size in layer.items()) for layer in windows]


def layer_mask(masks: dict, names: tuple[str, ...]) -> AttentionMask | dict[str, AttentionMask]:
    """The mask of a layer with these `mask_names`; {kind: mask} for one made of two mixers, None for one without."""
    if len(names) == 1:
        return masks[names[0]]
    return {name.partition(" ")[0]: masks[name] for name in names} or None


def mask_plan(config: ZooConfig, names: list[tuple[str, ...]]) -> list[MaskRule]:
    """The rules of a model whose layers have these `mask_names`."""
    rules = {}
    for layer_idx, own in enumerate(names):
        for name, kind in zip(own, kinds_of(config, layer_idx), strict=True):
            if name not in rules:
                source = config.kv_source_of(layer_idx)
                keys, layer = layer_idx if source is None else source, config.per_layer_config[layer_idx]
                rules[name] = MaskRule(name, kind, window_of(layer, kind), keys, layer)
    return list(rules.values())


def columns_so_far(
    config: ZooConfig, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor, past_key_values: Cache | None
) -> torch.Tensor | None:
    """A padding mask without columns behind the last token of `inputs_embeds` `[B, T, D]`, `[B, S + T]`; any other mask
    as it is."""
    if attention_mask is None:
        return None
    counted = config.position_config["ids_from_mask"]
    return trim_padding_mask(attention_mask, inputs_embeds.shape[1], past_key_values, always=counted)


def build_masks(
    config: ZooConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    compact: bool = True,
    plan: list[MaskRule] | None = None,
) -> dict:
    """{mask name: mask} for `inputs_embeds` `[B, T, D]` and a padding mask `[B, S + T]` or a ready 4-D one.

    Each is sized by a layer that uses it: the caches of two layer types, or of two windows, give different numbers of
    keys. Patterns go by position, padding counted. With `compact`, a mask may be a `BandMask`, or None where one query
    sees all. `position_ids` tell packed sequences apart where they jump, None: there are none. `plan` is what
    `mask_plan` says, where it is known already.
    """
    if inputs_embeds.is_meta:
        # Without data there is nothing to hide but the future, and no number to look at.
        attention_mask = position_ids = None
    call = {
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    masks, depth = {}, config.num_hidden_layers
    full = create_full_mask if config.use_bidirectional_attention else create_causal_mask
    for name, kind, window, layer_idx, layer in mask_plan(config, mask_names(config)) if plan is None else plan:
        if layer_idx >= depth:
            # Cut off since the plan was made.
            continue
        builder = full if kind == "full_attention" else MASK_BUILDERS.get(kind, full)
        build = partial(backend_mask, builder, layer, kind, window, layer_idx, **call)
        if kind in PATTERNS:
            masks[name] = build(and_mask_function=PATTERNS[kind](window))
        elif compact:
            masks[name] = compact_mask(build, layer, kind, window, layer_idx, **call)
        else:
            masks[name] = build()
    # It grows with every token, so it stays out of compiled graphs where nothing reads it.
    if config.position_embedding_type == "alibi" and attention_mask is not None and attention_mask.dim() == 2:
        masks[PADDING] = attention_mask
    return masks
