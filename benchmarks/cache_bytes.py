"""Bytes a cache holds per token and layer: counted in its tensors, against the formula."""

import torch
from transformers import DynamicCache

from .decode import filled_caches
from .models import pair, their_config

# model -> bytes per token and layer for a config and the bytes of a number.
FORMULAS = {
    "gqa": lambda config, size: 2 * config.num_key_value_heads * config.head_dim * size,
    "mla": lambda config, size: (config.kv_lora_rank + config.qk_rope_head_dim) * size,
    "dsa": lambda config, size: (config.kv_lora_rank + config.qk_rope_head_dim + config.index_head_dim) * size,
}


def held(cache: DynamicCache) -> int:
    """Bytes of the cached tokens of all layers, without spare room."""
    total = 0
    for layer in cache.layers:
        parts = (layer.keys, layer.values, getattr(layer, "indexer_keys", None))
        total += sum(part.numel() * part.element_size() for part in parts if part is not None)
    return total


def reserved(cache: DynamicCache) -> int:
    """Bytes of everything zoo's layers hold, spare room included."""
    buffers = [buffer for layer in cache.layers for buffer in layer.store.buffers]
    buffers += [layer.indexer_buffer for layer in cache.layers if hasattr(layer, "indexer_buffer")]
    return sum(buffer.storage.numel() * buffer.storage.element_size() for buffer in buffers if len(buffer))


@torch.no_grad()
def cache_bytes(case: str, context: int, options) -> dict:
    """Bytes per token and layer of both sides behind `context` tokens, and what the formula says."""
    changes = options.changes(case)
    models = pair(case, options.dtype, options.device, options.tiny, **changes)
    config = their_config(case, options.tiny, **changes)
    caches = filled_caches(models, config, context, options.device)
    size, layers = models["zoo"].dtype.itemsize, config.num_hidden_layers
    found = {side: held(cache) / layers for side, cache in caches.items()}
    if case == "sliding":
        expected = min(context, config.sliding_window - 1) * FORMULAS["gqa"](config, size)
    else:
        expected = context * FORMULAS[case](config, size)
    return {
        "kind": "bytes",
        "case": case,
        "context": context,
        "per_layer": found,
        "formula": expected,
        "reserved": reserved(caches["zoo"]) / layers,
        "equal": found["zoo"] == expected,
    }


def show(one: dict) -> str:
    """One line for people."""
    found, context = one["per_layer"], one["context"]
    return (
        f"bytes {one['case']}, context {context}: per layer zoo {found['zoo']:,.0f}, transformers "
        f"{found['transformers']:,.0f}, formula {one['formula']:,.0f} ({one['formula'] / context:,.0f} per token), "
        f"{'equal' if one['equal'] else 'NOT equal'}; with spare room {one['reserved']:,.0f}"
    )
