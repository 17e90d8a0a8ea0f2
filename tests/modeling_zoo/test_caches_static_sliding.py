"""The ring of a static sliding window: the tokens of a dynamic cache, one graph, no number in Python."""

import pytest
import torch
import torch._dynamo.testing
from random_models import randomize
from samples import every
from tiny_fields import GROUPED, LATENT, WIDTHS
from transformers import DynamicCache, StaticCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_hybrid import RecurrentAndStaticSlidingLayer
from modeling_zoo.cache_static_sliding import StaticSlidingLatentLayer, StaticSlidingLayer
from modeling_zoo.cache_upgrade import upgrade_cache

WINDOW, LENGTH = 5, 30
SIZES = WIDTHS | {"vocab_size": 31, "num_hidden_layers": 2, "max_position_embeddings": 64}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
CASES = {
    "sliding": GROUPED | SLIDING,
    "only sliding": GROUPED | SLIDING | {"layer_types": ["sliding_attention"] * 2},
    "sliding, eager": GROUPED | SLIDING | {"attn_implementation": "eager", "attention_sinks": "all"},
    "sliding, alibi": GROUPED | SLIDING | {"position_embedding_type": "alibi"},
    "chunked": GROUPED | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": WINDOW},
    "latent": LATENT | SLIDING,
    "hybrid": GROUPED | SLIDING | {
        "layer_types": ["hybrid_sliding", "sliding_attention"], "linear_attention_type": "gated_delta_net",
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    },
}  # fmt: skip
# How a sequence comes: prompts longer and shorter than the window, in parts, with tokens between, one at a time.
PARTS = {
    "short prompt": (3, *[1] * 15), "long prompt": (11, *[1] * 9), "window": (5, *[1] * 9),
    "parts": (4, 7, 1, 1, 3, 2, *[1] * 6, 4, 1), "tokens": (1,) * 14,
}  # fmt: skip


def make(case):
    torch.manual_seed(1)
    model = ZooForCausalLM(ZooConfig(**({"attn_implementation": "sdpa"} | SIZES | CASES[case])))
    randomize(model)
    return model.eval()


def static_cache(model):
    cache = upgrade_cache(StaticCache(config=model.config, max_cache_len=LENGTH), model.config)
    kinds = (StaticSlidingLayer, RecurrentAndStaticSlidingLayer)
    assert isinstance(cache.layers[0], kinds)
    assert isinstance(cache.layers[0], StaticSlidingLatentLayer) == (model.config.kv_lora_rank is not None)
    return cache


def logits(model, cache, tokens, parts, padding=None):
    found, start = [], 0
    for part in tokens[:, : sum(parts)].split(parts, dim=1):
        stop = start + part.shape[1]
        mask = {} if padding is None else {"attention_mask": padding[:, :stop]}
        found.append(model(part, past_key_values=cache, **mask).logits)
        start = stop
    return torch.cat(found, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("case", CASES)
def test_static_is_dynamic(case, parts, padded):
    model = make(case)
    tokens = torch.randint(1, 31, (2, LENGTH))
    padding = torch.ones(2, LENGTH, dtype=torch.long) if padded else None
    if padded:
        padding[0, :2] = 0
    dynamic = upgrade_cache(DynamicCache(config=model.config), model.config)
    expected = logits(model, dynamic, tokens, parts, padding)
    cache = static_cache(model)
    for _ in range(2):
        found = logits(model, cache, tokens, parts, padding)
        seen = slice(2 * padded, None)
        torch.testing.assert_close(found[:, seen], expected[:, seen], rtol=1e-4, atol=1e-4)
        assert cache.get_seq_length() == sum(parts)
        cache.reset()


def one_token(model, cache, tokens, at):
    one, position = tokens[:, at : at + 1], torch.full((2, 1), at)
    embedded = model.model.embed_tokens(one)
    masks = model.create_masks_for_generate(model.config, embedded, None, cache, position)
    return {"input_ids": one, "attention_mask": masks, "position_ids": position, "past_key_values": cache}


@torch.no_grad()
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", every(3, CASES))
def test_one_graph_without_numbers_of_python(case, inside):
    """For all tokens, before and behind the end of the window; `inside`: masks are made in the graph."""
    model, inputs = make(case), []
    torch._dynamo.reset()

    def backend(graph, examples):
        inputs.append([node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"])
        return graph.forward

    compiled = torch.compile(model.forward, fullgraph=True, backend=backend)
    tokens = torch.randint(1, 31, (2, LENGTH))
    expected = model(tokens, use_cache=False).logits
    cache = static_cache(model)
    for prompt in (3, 9):
        model(tokens[:, :prompt], past_key_values=cache)
        for at in range(prompt, 20):
            call = one_token(model, cache, tokens, at)
            found = compiled(**call | ({"attention_mask": None} if inside else {})).logits
            torch.testing.assert_close(found[:, 0], expected[:, at], rtol=1e-4, atol=1e-4)
        cache.reset()
    torch._dynamo.reset()
    assert len(inputs) == 1
    assert all(isinstance(value, torch.Tensor) for value in inputs[0])


@torch.no_grad()
def test_addresses_stay():
    model, tokens = make("sliding"), torch.randint(1, 31, (2, LENGTH))
    cache = static_cache(model)
    layer, places = cache.layers[0], []
    for parts in ((4, 1, 1, 1), (9, 3, 1)):
        logits(model, cache, tokens, parts)
        cache.reorder_cache(torch.tensor([1, 0]))
        places.append([held.data_ptr() for held in (layer.keys, layer.values, layer.cumulative_length)])
        cache.reset()
    assert places[0] == places[1] and layer.keys.shape[-2] == WINDOW


@torch.no_grad()
@pytest.mark.parametrize("case", ["sliding", "latent"])
def test_rows_change_places_and_layers_devices(case):
    """As beam search and offloading ask for."""
    model, tokens = make(case), torch.randint(1, 31, (2, LENGTH))
    cache = static_cache(model)
    logits(model, cache, tokens, (6, 1, 1))
    cache.reorder_cache(torch.tensor([1, 0]))
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    found = logits(model, cache, tokens[[1, 0], 8:], (1, 2, 1))
    expected = model(tokens[:, :12], use_cache=False).logits
    torch.testing.assert_close(found, expected[[1, 0], 8:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", ["only sliding", "chunked", "latent"])
def test_generate_with_a_static_cache(case):
    model, tokens = make(case), torch.randint(3, 31, (2, 4))
    options = {
        "max_new_tokens": 14,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "disable_compile": True,
    }
    for more in ({}, {"attention_mask": torch.tensor([[0, 1, 1, 1], [1] * 4])}, {"num_beams": 2}):
        found, expected = (
            model.generate(tokens, cache_implementation=kind, **options, **more) for kind in ("static", None)
        )
        assert torch.equal(found, expected)
