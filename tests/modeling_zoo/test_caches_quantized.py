"""The eight-bit cache as a user asks for it: through `generate`."""

import pytest
import torch
from random_models import randomize
from transformers import DynamicCache, QuantizedCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_quantized import (
    QuantizedGrowingLayer,
    QuantizedIndexedLatentLayer,
    QuantizedLatentLayer,
    QuantizedSlidingLayer,
)
from modeling_zoo.cache_upgrade import upgrade_cache

SIZES = {
    "vocab_size": 37, "hidden_size": 36, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 10}
LATENT = SIZES | {
    "attention_type": "latent", "kv_lora_rank": 14, "q_lora_rank": 18, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6,
    "v_head_dim": 10,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 5}
INDEXED = {"layer_types": ["indexed_attention"] * 2, "index_topk": 64, "index_n_heads": 3, "index_head_dim": 8}
# case -> (flags, the class that stores it, bytes per token and layer in float32)
CASES = {
    "full": (GROUPED, QuantizedGrowingLayer, 2 * 2 * (10 + 4)),
    "sliding": (GROUPED | SLIDING, QuantizedSlidingLayer, 2 * 2 * (10 + 4)),
    "latent": (LATENT, QuantizedLatentLayer, 14 + 4 + 6 * 4),
    "sparse": (LATENT | INDEXED, QuantizedIndexedLatentLayer, 14 + 4 + 6 * 4 + 8 * 4),
}
ASK = {"cache_implementation": "quantized", "cache_config": {"backend": "int8"}}
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def make(flags):
    model = ZooForCausalLM(ZooConfig(**flags))
    randomize(model)
    return model.eval()


def stored(layer):
    buffers = [*layer.store.buffers, *([layer.indexer_buffer] if hasattr(layer, "indexer_buffer") else [])]
    return sum(buffer.tail(layer._visible_length()).nbytes for buffer in buffers)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_generate_stores_eight_bits(case):
    flags, kind, bytes_per_token = CASES[case]
    model, tokens = make(flags), torch.randint(1, 37, (1, 9))
    found = model.generate(tokens, **GREEDY, **ASK, return_dict_in_generate=True, output_scores=True)
    layers = found.past_key_values.layers
    assert [type(layer) for layer in layers] == [kind] * 2
    count = 4 if case == "sliding" else 9 + 12 - 1
    assert [stored(layer) for layer in layers] == [count * bytes_per_token] * 2
    # Beside it, the plain cache: the same up to the rounding, which is not nothing.
    expected = model.generate(tokens, **GREEDY, return_dict_in_generate=True, output_scores=True)
    first, plain = found.scores[1], expected.scores[1]
    if torch.equal(found.sequences[:, :10], expected.sequences[:, :10]):
        assert 0 < (first - plain).abs().max() < 0.08 * plain.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_close_to_those_of_the_plain_cache(case):
    model, tokens = make(CASES[case][0]), torch.randint(1, 37, (2, 14))
    logits = {}
    for quantized in (False, True):
        cache = upgrade_cache(DynamicCache(config=model.config), model.config, quantized)
        steps = (tokens[:, :8], *tokens[:, 8:].split(1, dim=1))
        logits[quantized] = torch.cat([model(step, past_key_values=cache).logits for step in steps], dim=1)
    error = (logits[True] - logits[False]).abs().max() / logits[False].abs().max()
    assert 0 < error < 0.05


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}])
def test_every_way_of_generating_takes_it(options):
    model, tokens = make(GROUPED), torch.randint(1, 37, (1, 9))
    found = model.generate(tokens, **GREEDY, **ASK, **options)
    plain = {} if "num_beams" not in options else options
    assert torch.equal(found, model.generate(tokens, **GREEDY, **ASK, **plain))


@torch.no_grad()
def test_the_next_call_is_plain_again():
    model, tokens = make(GROUPED), torch.randint(1, 37, (1, 9))
    model.generate(tokens, **GREEDY, **ASK)
    later = model.generate(tokens, **GREEDY, return_dict_in_generate=True).past_key_values
    assert not any(isinstance(layer, QuantizedGrowingLayer) for layer in later.layers)
    model.generation_config.cache_implementation, model.generation_config.cache_config = ASK.values()
    later = model.generate(tokens, **GREEDY, return_dict_in_generate=True).past_key_values
    assert all(isinstance(layer, QuantizedGrowingLayer) for layer in later.layers)


@torch.no_grad()
def test_other_backends_are_transformers_own():
    model, tokens = make(GROUPED), torch.randint(1, 37, (1, 9))
    ask = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    try:
        found = model.generate(tokens, **GREEDY, **ask, return_dict_in_generate=True).past_key_values
    except ValueError as error:  # before it was there
        assert "fp8" in str(error)
    else:
        assert isinstance(found, QuantizedCache)


def test_options_it_does_not_have_are_refused():
    with pytest.raises(ValueError, match="'nbits': 4.*'int8' has no further options"):
        make(GROUPED).generate(
            torch.ones(1, 3, dtype=torch.long),
            cache_implementation="quantized",
            cache_config={"backend": "int8", "nbits": 4},
        )


def test_a_cache_of_ones_own_beside_it_is_refused():
    model = make(GROUPED)
    with pytest.raises(ValueError, match="past_key_values"):
        model.generate(torch.ones(1, 3, dtype=torch.long), **ASK, past_key_values=DynamicCache(config=model.config))
