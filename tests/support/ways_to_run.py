"""Every way a model is run against one set of expected logits: at once, by steps, in pieces, padded, in caches of fixed
size, generated from, saved and loaded."""

from dataclasses import fields

import torch
from transformers import DynamicCache, StaticCache
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_upgrade import upgrade_cache

TOKENS, PROMPT, LEFT = 14, 6, 3
# What saving and loading set themselves.
FROM_FILES = ("architectures", "dtype", "transformers_version")


def assert_close(ours, expected, tolerance=2e-5):
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def caches(model):
    """The model's own, and where there are keys and values to count, transformers' growing one; of fixed size."""
    config = model.config
    found = [upgrade_cache(DynamicCache(config=config), config)]
    found += [DynamicCache(config=config)] if config.softmax_layers else []
    return [*found, upgrade_cache(StaticCache(config=config, max_cache_len=TOKENS + LEFT), config)]


def masked(mask, start=0, stop=None):
    """A padding mask as `generate` hands it on, with positions that count what it shows."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}


def pieces(model, tokens, cache, bounds, mask=None):
    """Logits of the pieces of `tokens` that `bounds` cut, one call each, one behind the other."""
    logits = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        padding = {} if mask is None else masked(mask, start, stop)
        logits.append(model(tokens[:, start:stop], past_key_values=cache, use_cache=True, **padding).logits)
    return torch.cat(logits, dim=1)


def check_cached(model, tokens, expected):
    """Steps, pieces and a cache of fixed size give what all at once gives."""
    steps = [0, *range(PROMPT, TOKENS + 1)]
    assert_close(model(tokens, use_cache=False).logits, expected)
    for cache in caches(model):
        for bounds in (steps, [0, 5, 6, 11, TOKENS]):
            cache.reset()
            assert_close(pieces(model, tokens, cache, bounds), expected)


def check_padded(model, tokens, expected):
    """A row with tokens of no meaning on its left gives what it gives alone, at once and by steps."""
    padded = torch.cat((torch.full((2, LEFT), 7), tokens), dim=1)
    padded[1, :-LEFT] = tokens[1]
    mask = torch.ones_like(padded)
    mask[0, :LEFT] = 0
    bounds = [0, *range(PROMPT, TOKENS + LEFT + 1)]
    found = [model(padded, **masked(mask)).logits]
    found += [pieces(model, padded, cache, bounds, mask) for cache in caches(model)]
    for logits in found:
        assert_close(logits[0, LEFT:], expected[0])
        assert_close(logits[1, :TOKENS], expected[1])


def check_generated(model, tokens, padding=True):
    """Greedy tokens and beams do not depend on the cache, nor a row's on what is left of it."""
    prompt = tokens[:, :PROMPT]
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 2):
        expected = model.generate(prompt, use_cache=False, num_beams=beams, **options)
        assert torch.equal(model.generate(prompt, num_beams=beams, **options), expected)
    expected = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **options), expected)
    if padding:
        padded = torch.cat((torch.full((2, LEFT), 7), prompt), dim=1)
        mask = torch.cat((torch.zeros(2, LEFT, dtype=torch.long), torch.ones_like(prompt)), dim=1)
        generated = model.generate(padded, attention_mask=mask, **options)
        assert torch.equal(generated[:, LEFT + PROMPT :], expected[:, PROMPT:])


class Installed:
    """The classes of the package."""

    model, config = ZooForCausalLM, ZooConfig


class Loaded:
    """Those of a folder's own code, which transformers passes over where the package has registered its own."""

    def __init__(self, folder):
        self.model = get_class_from_dynamic_module("modeling_zoo.ZooForCausalLM", str(folder))
        self.config = get_class_from_dynamic_module("configuration_zoo.ZooConfig", str(folder))
        assert self.model is not ZooForCausalLM


def check_saved(model, tokens, expected, folder, remote=False):
    """Saved and loaded it is the same model to the last bit, by the package's code or by the folder's."""
    model.save_pretrained(folder)
    place = Loaded(folder) if remote else Installed
    again = place.model.from_pretrained(folder, config=place.config.from_pretrained(folder)).eval()
    assert torch.equal(again(tokens).logits, expected)
    views = zip(again.config.per_layer_config, model.config.per_layer_config, strict=True)
    names = [field.name for field in fields(type(again.config)) if field.name not in FROM_FILES]
    assert all(getattr(one, name) == getattr(other, name) for one, other in views for name in names)
