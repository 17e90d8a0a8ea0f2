"""Which cache layer a layer of the model gets: layers without copies in place of transformers' own.

`upgrade_cache` keeps transformers' cache object, vocabulary and every promise of its layers; the layers it puts in hold
the same tokens in storage that is not copied for every token. No layer is replaced for other models.
"""

import copy

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from configuration_zoo import ZooConfig

from .cache_compressed import CompressedLayer
from .cache_counting import CountingLayer, CountingRecurrentLayer
from .cache_growing import GrowingLayer, LatentLayer
from .cache_hybrid import (
    RecurrentAndGrowingLayer,
    RecurrentAndSlidingLayer,
    RecurrentAndStaticLayer,
    RecurrentAndStaticSlidingLayer,
)
from .cache_indexed import IndexedLatentLayer, IndexedLayer
from .cache_quantized import (
    QuantizedGrowingLayer,
    QuantizedIndexedLatentLayer,
    QuantizedIndexedLayer,
    QuantizedLatentLayer,
    QuantizedSlidingLayer,
)
from .cache_recurrent import RecurrentLayer
from .cache_sliding import SlidingLatentLayer, SlidingLayer
from .cache_static import StaticIndexedLatentLayer, StaticLatentLayer
from .cache_static_sliding import StaticSlidingLatentLayer, StaticSlidingLayer
from .platform_pipeline import count_elsewhere
from .platform_transformers import replicate, replicated_class

CacheLayer = CacheLayerMixin | LinearAttentionLayer
# transformers' class, exactly -> ours, for keys and values; where one is missing, transformers' own stays.
PLAIN_LAYERS = {
    DynamicLayer: GrowingLayer,
    DynamicSlidingWindowLayer: SlidingLayer,
    DynamicIndexedLayer: IndexedLayer,
    StaticSlidingWindowLayer: StaticSlidingLayer,
    LinearAttentionLayer: RecurrentLayer,
    LinearAttentionAndFullAttentionLayer: RecurrentAndGrowingLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: RecurrentAndSlidingLayer,
    LinearAttentionAndStaticFullAttentionLayer: RecurrentAndStaticLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer: RecurrentAndStaticSlidingLayer,
}
# The same where the attention is latent.
LATENT_LAYERS = {
    DynamicLayer: LatentLayer,
    DynamicSlidingWindowLayer: SlidingLatentLayer,
    DynamicIndexedLayer: IndexedLatentLayer,
    StaticLayer: StaticLatentLayer,
    StaticSlidingWindowLayer: StaticSlidingLatentLayer,
    StaticIndexedLayer: StaticIndexedLatentLayer,
}
# By the mechanism of attention, where it is not keys and values per head; and the widths that its layers are told, each
# with the field that says it.
OTHER_LAYERS = {"latent": LATENT_LAYERS}
WIDTHS = {"latent": {"latent_dim": "kv_lora_rank", "rope_dim": "qk_rope_head_dim"}}
# By the type of the layer, where it keeps entries beside a window, whatever transformers made for it.
ENTRY_LAYERS = {"compressed_sparse_attention": CompressedLayer, "heavily_compressed_attention": CompressedLayer}
# The layer that counts tokens where no attention does, by the type of the layer it stands for.
COUNTING_LAYERS = {"linear_attention": CountingRecurrentLayer, "conv": CountingRecurrentLayer, "moe": CountingLayer}
# Our class -> the one that stores eight bits.
QUANTIZED_LAYERS = {
    GrowingLayer: QuantizedGrowingLayer,
    SlidingLayer: QuantizedSlidingLayer,
    IndexedLayer: QuantizedIndexedLayer,
    LatentLayer: QuantizedLatentLayer,
    IndexedLatentLayer: QuantizedIndexedLatentLayer,
}

# Layer types that keep keys and values and nothing else: what a cache made without a config has.
KEY_VALUE_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
# How much of a device's free memory is reserved for tokens that may come: a sequence can end before its longest.
RESERVED_SHARE = 0.5
# The name of the quantised layers in `cache_config`.
INT8_BACKEND = "int8"


def upgrade_cache(cache: Cache | None, config: ZooConfig, quantized: bool = False) -> Cache | None:
    """Put zoo's layers into `cache`, in place, for the layers that are still empty; returns `cache`.

    `config` says per layer whether attention is latent (`attention_type`) and how wide (`kv_lora_rank`,
    `qk_rope_head_dim`); windows, lengths and what `activate_past_recording` and offloading asked for are taken over.
    Only layers of exactly transformers' classes are replaced, so a second call changes nothing, and neither a filled
    layer nor one of another class is touched. `quantized` stores eight bits wherever a class for it exists.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        return cache
    if keeps_more(config) and not cache.layers:
        cache.layers.extend(DynamicCache(config=config).layers)
        replicate(cache, None)
    if replicated_class(cache) is DynamicLayer:
        _upgrade_replicated(cache, config, quantized)
    # The layers of a cache can be fewer or more than the config's, those of prediction heads for example.
    configs = dict(enumerate(config.per_layer_config))
    kinds = dict(enumerate(getattr(config, "layer_types", None) or ()))
    for index, layer in enumerate(cache.layers):
        if _is_empty(layer):
            own = configs.get(index, config)
            with_entries = ENTRY_LAYERS.get(kinds.get(index))
            if with_entries is not None and not isinstance(layer, StaticLayer):
                cache.layers[index] = with_entries(own)
            else:
                cache.layers[index] = upgraded_layer(layer, own, attention_of(own, index), quantized)
    if may_count_tokens(config):
        _count_tokens(cache, config)
    return cache


def keeps_more(config: ZooConfig) -> bool:
    """Whether some layer keeps something else than keys and values."""
    return any(name not in KEY_VALUE_LAYERS for name in getattr(config, "layer_types", None) or ())


def may_count_tokens(config: ZooConfig) -> bool:
    """Whether there are layers without keys: where they are all that a model has, one of them counts the tokens."""
    return any(name in COUNTING_LAYERS for name in getattr(config, "layer_types", None) or ())


def prepare_cache(cache: Cache | None, config: ZooConfig) -> None:
    """Makes a caller's own cache fit for layers that keep something else than keys and values, in place, before its
    first token.

    `DynamicCache()` has no layers yet and would give each of them keys and values; in one made from a config nothing
    counts tokens where no layer has keys.
    """
    layers = getattr(cache, "layers", None)
    counted = not isinstance(layers, list) or any(isinstance(layer, CacheLayerMixin) for layer in layers)
    entries = any(name in ENTRY_LAYERS for name in getattr(config, "layer_types", None) or ())
    if keeps_more(config) and (entries or not counted):
        upgrade_cache(cache, config)


def pop_int8_request(generation_config: GenerationConfig, given: Cache | None) -> tuple[GenerationConfig, bool]:
    """(a copy of the generation config without the request, True) where it asks for this package's quantised cache and
    no cache is `given`, else (itself, False).

    The request is `cache_implementation="quantized"` with `cache_config={"backend": "int8"}`; all other backends are
    transformers' own. Raises ValueError for further options: this backend has none.
    """
    options = getattr(generation_config, "cache_config", None) or {}
    asked = generation_config.cache_implementation == "quantized" and options.get("backend") == INT8_BACKEND
    if not asked or given is not None:
        return generation_config, False
    if len(options) > 1:
        raise ValueError(
            f"cache_config={options}: the backend {INT8_BACKEND!r} has no further options. Leave them out, or name one "
            "of transformers' backends."
        )
    plain = copy.copy(generation_config)
    plain.cache_implementation = plain.cache_config = None
    return plain, True


def expect_tokens(cache: Cache | None, tokens: int | None) -> None:
    """Let the layers of a cache that grow know how many tokens they will hold in the end; None says nothing.

    All of them together reserve at most `RESERVED_SHARE` of a device's free memory ahead.
    """
    layers = [layer for layer in getattr(cache, "layers", ()) if hasattr(layer, "expect")]
    for layer in layers if tokens is not None else ():
        layer.expect(tokens, RESERVED_SHARE / len(layers))


def advance_cache(cache: Cache | None, hidden_states: torch.Tensor, layers: nn.ModuleList) -> None:
    """Tell a cache that the tokens of `hidden_states` `[B, T, D]` have been seen, where no attention of these layers
    has told it: there is none, or it is in another process."""
    if cache is not None:
        count_elsewhere(cache, hidden_states, layers)
        first = next((layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)), None)
        if hasattr(first, "advance"):
            first.advance(hidden_states.shape[1])


def attention_of(config: ZooConfig, layer_idx: int) -> str | None:
    """The mechanism of attention in a layer, by the config as this layer or as the model sees it."""
    named = getattr(config, "attention_type", None)
    return next(iter(named[layer_idx : layer_idx + 1]), None) if isinstance(named, list) else named


def layer_class_of(theirs: type, attention: str | None, quantized: bool) -> type | None:
    """The class for attention of this mechanism in place of one of transformers', None where there is none."""
    ours = OTHER_LAYERS.get(attention, {}).get(theirs) or PLAIN_LAYERS.get(theirs)
    # These keys have channels that eight bits beside the others would round away, or all heads in one row.
    whole = attention in ("forgetting", "path", "tensor_product", "grouped_tied")
    return QUANTIZED_LAYERS.get(ours, ours) if quantized and not whole else ours


def _upgrade_replicated(cache, config, quantized):
    """A cache made without a config, which adds a layer of one class whenever it meets a new index."""
    kinds = {attention_of(layer_config, index) for index, layer_config in enumerate(config.per_layer_config)}
    classes = {layer_class_of(DynamicLayer, kind, quantized) for kind in kinds}
    if len(classes) == 1:
        replicate(cache, classes.pop())


def _is_empty(layer):
    """Whether nothing was stored or reserved yet."""
    names = ("is_conv_states_initialized", "is_recurrent_states_initialized")
    recurrent = [flag for name in names for flag in getattr(layer, name, {}).values()]
    return not getattr(layer, "is_initialized", False) and not any(recurrent)


def upgraded_layer(layer: CacheLayer, config: ZooConfig, attention: str | None, quantized: bool) -> CacheLayer:
    """The layer to put in place of the empty `layer`: itself where the tables above have none for its class."""
    layer_class = layer_class_of(type(layer), attention, quantized)
    if layer_class is None:
        return layer
    names = ("sliding_window", "max_cache_len", "number_of_states")
    options = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    widths = {name: getattr(config, field) for name, field in WIDTHS.get(attention, {}).items()}
    new = layer_class(**options, **widths)
    if getattr(layer, "record_past", False):
        new.activate_past_recording()
    return new


def _count_tokens(cache, config):
    """Let the first recurrent layer, or the first of all, count the tokens where no attention layer does."""
    if not cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return
    recurrent = [index for index, layer in enumerate(cache.layers) if isinstance(layer, LinearAttentionLayer)]
    index = recurrent[0] if recurrent else 0
    # transformers' layer for one that keeps nothing is never empty to it.
    if not recurrent or _is_empty(cache.layers[index]):
        counting = COUNTING_LAYERS[config.layer_types[index]]
        cache.layers[index] = counting.instead_of(cache.layers[index], isinstance(cache, StaticCache))
