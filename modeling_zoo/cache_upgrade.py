"""Which cache layer a layer of the model gets: better ones in the place of transformers' own.

`upgrade_cache` keeps transformers' cache object, vocabulary and every promise of its layers; the layers it puts in hold
the same tokens in storage that is not copied for every token. No layer is replaced for other models.
"""

import copy

from transformers import cache_utils
from transformers.cache_utils import (
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
)

from .cache_counting import Counting, CountingLayer, CountingRecurrentLayer
from .cache_growing import GrowingLayer, IndexedLatentLayer, IndexedLayer, LatentLayer
from .cache_hybrid import (
    RecurrentAndGrowingLayer,
    RecurrentAndSlidingLayer,
    RecurrentAndStaticLayer,
    RecurrentAndStaticSlidingLayer,
)
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
from .platform_pipeline import count_elsewhere
from .platform_transformers import replicate, replicated_class

# transformers' class, exactly -> ours, for keys and values; where one is missing, transformers' own stays.
PLAIN_LAYERS = {
    DynamicLayer: GrowingLayer,
    DynamicSlidingWindowLayer: SlidingLayer,
    DynamicIndexedLayer: IndexedLayer,
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
    StaticIndexedLayer: StaticIndexedLatentLayer,
}
# Our class -> the one that stores eight bits.
QUANTIZED_LAYERS = {
    GrowingLayer: QuantizedGrowingLayer,
    SlidingLayer: QuantizedSlidingLayer,
    IndexedLayer: QuantizedIndexedLayer,
    LatentLayer: QuantizedLatentLayer,
    IndexedLatentLayer: QuantizedIndexedLatentLayer,
}

# transformers' words for layers that hold keys and values and nothing else: what a cache made without a config has.
KEYS_ALONE = ("full_attention", "sliding_attention", "chunked_attention", "indexed_attention")
# What `cache_config` calls them.
BACKEND = "int8"


def teach_indexed_layers():
    """A transformers before 5.19, which makes these layers for another word, learns ours; newer ones know it."""
    for table, layer in (("DYNAMIC", DynamicIndexedLayer), ("STATIC", StaticIndexedLayer)):
        getattr(cache_utils, f"{table}_LAYER_TYPE_MAPPING", {}).setdefault("indexed_attention", layer)


teach_indexed_layers()


def upgrade_cache(cache, config, quantized=False):
    """Put zoo's layers into `cache`, in place, for the layers that are still empty; returns `cache`.

    `config` says per layer whether attention is latent (`attention_type`) and how wide (`kv_lora_rank`,
    `qk_rope_head_dim`); windows, lengths and what `activate_past_recording` and offloading asked for are taken over.
    Only layers of exactly transformers' classes are replaced, so a second call changes nothing, and neither a filled
    layer nor one of somebody else's class is touched. `quantized` stores eight bits wherever a class for it exists.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        return cache
    config = config.get_text_config(decoder=True)
    if not cache.layers and any(word not in KEYS_ALONE for word in config.layer_types):
        cache.layers.extend(DynamicCache(config=config).layers)
        replicate(cache, None)
    if replicated_class(cache) is DynamicLayer:
        _upgrade_replicated(cache, config, quantized)
    replaced = (*PLAIN_LAYERS, *LATENT_LAYERS)
    if not any(type(layer) in replaced or _keeps_nothing(layer) for layer in cache.layers):
        return cache
    # The layers of a cache can be fewer or more than the config's, those of prediction heads for example.
    configs = dict(enumerate(config.per_layer_config))
    for index, layer in enumerate(cache.layers):
        if _is_empty(layer):
            own = configs.get(index, config)
            cache.layers[index] = _better(layer, own, _is_latent(own, index), quantized)
    _count_tokens(cache)
    return cache


def ready_cache(cache, config):
    """Make a cache that the caller made fit for layers without keys, in place, before its first token.

    `DynamicCache()` has no layers yet and would give each of them keys; one made from a config has nobody who counts
    tokens where no layer has keys.
    """
    layers = getattr(cache, "layers", None)
    counted = not isinstance(layers, list) or any(isinstance(layer, CacheLayerMixin) for layer in layers)
    if not counted and any(word not in KEYS_ALONE for word in config.layer_types):
        upgrade_cache(cache, config)


def eight_bits(generation_config, given):
    """(the generation config without it, True) where it asks for this package's quantised cache and no cache is
    `given`, else (itself, False).

    That is `cache_implementation="quantized"` with `cache_config={"backend": "int8"}`; all other backends are
    transformers' own. Raises ValueError for further options, of which eight bits have none.
    """
    options = getattr(generation_config, "cache_config", None) or {}
    asked = generation_config.cache_implementation == "quantized" and options.get("backend") == BACKEND
    if not asked or given is not None:
        return generation_config, False
    if len(options) > 1:
        raise ValueError(
            f"cache_config={options}: the backend {BACKEND!r} has no further options. Leave them out, or name one of "
            "transformers' backends."
        )
    plain = copy.copy(generation_config)
    plain.cache_implementation = plain.cache_config = None
    return plain, True


def advance_cache(cache, hidden_states, layers):
    """Tell a cache that the tokens of `hidden_states` `[B, T, D]` have been seen, where no attention of these layers
    has told it: there is none, or it is in another process."""
    if cache is not None:
        count_elsewhere(cache, hidden_states, layers)
        first = next((layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)), None)
        if isinstance(first, Counting):
            first.advance(hidden_states.shape[1])


def _is_latent(config, index):
    named = getattr(config, "attention_type", None)
    return (named[index : index + 1] == ["latent"]) if isinstance(named, list) else named == "latent"


def _upgrade_replicated(cache, config, quantized):
    """A cache made without a config, which adds a layer of one class whenever it meets a new index."""
    kinds = {_is_latent(layer_config, index) for index, layer_config in enumerate(config.per_layer_config)}
    if len(kinds) == 1:
        better = (LATENT_LAYERS if kinds.pop() else PLAIN_LAYERS)[DynamicLayer]
        replicate(cache, QUANTIZED_LAYERS[better] if quantized else better)


def _is_empty(layer):
    """Whether nothing was stored or reserved yet; layers without a state to ask for count as filled."""
    names = ("is_conv_states_initialized", "is_recurrent_states_initialized")
    recurrent = [flag for name in names for flag in getattr(layer, name, {}).values()]
    return not getattr(layer, "is_initialized", False) and not any(recurrent)


def _keeps_nothing(layer):
    """Whether it is transformers' layer for those without a mixer; an older one has a recurrent layer there."""
    return type(layer) is getattr(cache_utils, "DummyLayer", None)


def _better(layer, config, latent, quantized):
    """The layer to put in the place of the empty `layer`: itself where there is none better."""
    better = (LATENT_LAYERS.get(type(layer)) if latent else None) or PLAIN_LAYERS.get(type(layer))
    if better is None:
        return layer
    if quantized:
        better = QUANTIZED_LAYERS.get(better, better)
    names = ("sliding_window", "max_cache_len", "number_of_states")
    options = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    if latent:
        options |= {"latent_dim": config.kv_lora_rank, "rope_dim": config.qk_rope_head_dim}
    new = better(**options)
    if getattr(layer, "record_past", False):
        new.activate_past_recording()
    return new


def _count_tokens(cache):
    """Let the first recurrent layer, or the first of all, count the tokens where no attention layer does."""
    if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return
    recurrent = [index for index, layer in enumerate(cache.layers) if type(layer) is RecurrentLayer]
    index, on_device = recurrent[0] if recurrent else 0, isinstance(cache, StaticCache)
    old = cache.layers[index]
    if _keeps_nothing(old):
        cache.layers[index] = CountingLayer(counts_on_device=on_device)
    elif _is_empty(old):
        new = CountingRecurrentLayer(number_of_states=old.number_of_states, counts_on_device=on_device)
        if old.record_past:
            new.activate_past_recording()
        cache.layers[index] = new
