"""One decoded token behind a long context: whole models, time and memory."""

import torch
from transformers import DynamicCache

from modeling_zoo.cache_upgrade import upgrade_cache

from .limit import limit
from .measuring import alternate, difference, peak_memory, result
from .models import pair, their_config

# Tokens a recurrence is given to fill its state, which is as large after them as after any number.
RECURRENT_PROMPT = 64


def random_states(config, context: int, dtype, device: str):
    """What a layer has cached after `context` tokens: (keys, values, indexer keys or None)."""
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    if hasattr(config, "kv_lora_rank"):
        keys, values = random(1, 1, context, config.kv_lora_rank), random(1, 1, context, config.qk_rope_head_dim)
    else:
        shape = (1, config.num_key_value_heads, context, config.head_dim)
        keys, values = random(*shape), random(*shape)
    indexer = random(1, context, config.index_head_dim) if hasattr(config, "index_topk") else None
    return keys, values, indexer


def paired(rope_key: torch.Tensor) -> torch.Tensor:
    """Channels in two halves → the same in pairs."""
    return rope_key.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


@torch.no_grad()
def filled_caches(models: dict, config, context: int, device: str) -> dict:
    """{side: a cache behind `context` tokens}; recurrent layers read the first of them alone."""
    caches = {side: DynamicCache(config=model.config) for side, model in models.items()}
    upgrade_cache(caches["zoo"], models["zoo"].config)
    dtype = models["zoo"].dtype
    words = config.layer_types if "linear_attention" in (getattr(config, "layer_types", None) or ()) else None
    if words is not None:
        prompt = tokens(min(RECURRENT_PROMPT, context), config.vocab_size, device)
        for side, model in models.items():
            model(prompt, past_key_values=caches[side], logits_to_keep=1)
        context -= prompt.shape[1]
    latent = hasattr(config, "kv_lora_rank")
    for index in range(config.num_hidden_layers):
        if words is not None and words[index] == "linear_attention":
            continue
        keys, values, indexer = random_states(config, context, dtype, device)
        for side, cache in caches.items():
            # Rotated channels of latent models stand in pairs in zoo, in two halves in transformers.
            turned = paired(values) if latent and side == "zoo" else values
            cache.update(keys, turned, index)
            if indexer is not None:
                cache.update_indexer(indexer, index)
    return caches


def tokens(count: int, vocabulary: int, device: str, seed: int = 0) -> torch.Tensor:
    """Random tokens `[1, count]`."""
    return torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def decode(case: str, context: int, options) -> dict:
    """Median time of one token behind `context` others, and what it needs beside weights and cache."""
    changes = options.changes(case)
    models = pair(case, options.dtype, options.device, options.tiny, **changes)
    config = their_config(case, options.tiny, **changes)
    caches = filled_caches(models, config, context, options.device)
    steps = {side: iter(range(10**9)) for side in models}

    def token(side):
        here = tokens(1, config.vocab_size, options.device, seed=next(steps[side]))
        return models[side](here, past_key_values=caches[side]).logits

    sides = {side: lambda side=side: token(side) for side in models}
    times, logits = alternate(sides, options.rounds, options.device)
    memory = {side: peak_memory(work, options.device) for side, work in sides.items()}
    error = difference(logits["zoo"], logits["transformers"])
    least = limit(models["zoo"].config, context, times, options.device)
    return result("decode", case, context, times, error, memory, limit=least)
