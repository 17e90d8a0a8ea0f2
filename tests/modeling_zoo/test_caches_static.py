"""zoo's static cache layers: transformers' answers, fixed addresses, one graph; and dynamic layers while tracing."""

import pytest
import torch
import torch._dynamo.testing
from samples import only
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticIndexedLayer,
    StaticLayer,
)

from modeling_zoo import cache_storage
from modeling_zoo.cache_counting import CountingRecurrentLayer
from modeling_zoo.cache_growing import GrowingLayer, LatentLayer
from modeling_zoo.cache_hybrid import RecurrentAndStaticLayer
from modeling_zoo.cache_recurrent import RecurrentLayer
from modeling_zoo.cache_sliding import SlidingLayer
from modeling_zoo.cache_static import StaticIndexedLatentLayer, StaticLatentLayer
from modeling_zoo.cache_upgrade import upgrade_cache

LATENT, ROPE, INDEX, LENGTH = 6, 4, 3, 24
PAIRS = {"latent": (StaticLatentLayer, StaticLayer), "indexed": (StaticIndexedLatentLayer, StaticIndexedLayer)}


def states(count, rows=2):
    return torch.randn(rows, 1, count, LATENT), torch.randn(rows, 1, count, ROPE)


def addresses(layer):
    names = ("latent_and_rope", "indexer_keys", "cumulative_length", "indexer_cumulative_length")
    return [getattr(layer, name).data_ptr() for name in names if isinstance(getattr(layer, name, None), torch.Tensor)]


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
def test_layers_equal_transformers(case):
    ours, theirs = (layer(max_cache_len=LENGTH) for layer in case)
    assert ours.get_max_length() == theirs.get_max_length() == LENGTH and ours.is_compileable
    kept = None
    for round_ in range(2):
        for count in (5, 1, 1, 3):
            assert ours.get_mask_sizes(count) == theirs.get_mask_sizes(count)
            new, index = states(count), torch.randn(2, count, INDEX)
            for mine, other in zip(ours.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(mine, other)
            if hasattr(theirs, "update_indexer"):
                assert torch.equal(ours.update_indexer(index), theirs.update_indexer(index))
            for layer in (ours, theirs):
                layer.reorder_cache(torch.tensor([1, 0]))
            for name in ("keys", "values", "indexer_keys", "batch_size"):
                assert torch.equal(*(torch.as_tensor(getattr(layer, name, 0)) for layer in (ours, theirs)))
            assert ours.get_seq_length() == theirs.get_seq_length()
            kept = kept or addresses(ours)
            assert addresses(ours) == kept, f"moved in round {round_}"
        for layer in (ours, theirs):
            layer.reset()
        assert ours.get_seq_length() == 0 and not ours.latent_and_rope.any()


def test_keys_and_values_are_parts_of_one_tensor():
    layer = StaticLatentLayer(max_cache_len=LENGTH)
    keys, values = layer.update(*states(5))
    assert layer.latent_and_rope.shape == (2, 1, LENGTH, LATENT + ROPE)
    for view in (keys, layer.keys):
        assert view.data_ptr() == layer.latent_and_rope.data_ptr()
    for view in (values, layer.values):
        assert view.data_ptr() == layer.latent_and_rope[..., LATENT:].data_ptr()


def test_early_initialisation_knows_the_widths():
    """`early_initialization` passes the head shapes of ordinary attention, for keys and values alike."""
    cache = Cache(layers=[StaticLatentLayer(LENGTH, latent_dim=LATENT, rope_dim=ROPE)])
    cache.early_initialization(batch_size=2, num_heads=7, head_dim=5, dtype=torch.float32, device=torch.device("cpu"))
    assert cache.is_initialized and cache.layers[0].latent_and_rope.shape == (2, 1, LENGTH, LATENT + ROPE)
    keys, _ = cache.update(*states(3), 0)
    assert keys.shape == (2, 1, LENGTH, LATENT) and cache.get_seq_length() == 3


@pytest.mark.parametrize("layer", [StaticLatentLayer, StaticIndexedLatentLayer])
def test_offloading_and_back_changes_nothing(layer):
    layer = layer(max_cache_len=LENGTH)
    layer.update(*states(5))
    if hasattr(layer, "update_indexer"):
        layer.update_indexer(torch.randn(2, 5, INDEX))
    before = layer.latent_and_rope.clone()
    layer.offload()
    layer.prefetch()
    layer.reorder_cache(torch.tensor([1, 0]))
    keys, _ = layer.update(*states(1))
    assert torch.equal(layer.latent_and_rope[:, :, :5], before[[1, 0], :, :5])
    assert keys.data_ptr() == layer.latent_and_rope.data_ptr() == layer.keys.data_ptr()
    layer.device = layer.indexer_device = torch.device("meta")
    layer.prefetch()
    held = [layer.latent_and_rope, layer.keys, layer.values, getattr(layer, "indexer_keys", None)]
    assert {tensor.device.type for tensor in held if tensor is not None} == {"meta"}


def decode(cache, keys, values, index, state):
    """One step over every kind of static layer; the answer depends on all of them."""
    first, second = cache.update(keys, values, 0)
    indexer = cache.update_indexer(index, 0)
    kept = cache.update_recurrent_state(state, 1, num_tokens=1)
    full = cache.update_conv_state(state.unsqueeze(-1), 2, conv_kernel_size=3)
    third, _ = cache.update(keys, values, 2)
    cache.layers[3].advance(keys.shape[-2])
    length = cache.get_seq_length() + cache.layers[3].get_seq_length()
    return first.sum() + second.sum() + indexer.sum() + kept.sum() + full.sum() + third.sum() + length


def static_cache():
    layers = [
        StaticIndexedLatentLayer(LENGTH, LATENT, ROPE),
        RecurrentLayer(),
        RecurrentAndStaticLayer(LENGTH),
        CountingRecurrentLayer(counts_on_device=True),
    ]
    return Cache(layers=layers)


def test_decoding_compiles_once():
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    plain, cache = static_cache(), static_cache()
    compiled = torch.compile(decode, backend=counter, fullgraph=True)
    inputs = [(*states(count), torch.randn(2, count, INDEX), torch.randn(2, 5)) for count in [4] + [1] * 12]
    with torch.no_grad():
        for cached in (plain, cache):
            decode(cached, *inputs[0])
        before = [state.data_ptr() for state in cache.layers[1].recurrent_states.values()] + addresses(cache.layers[0])
        for step in inputs[1:]:
            torch.testing.assert_close(compiled(cache, *step), decode(plain, *step))
    assert counter.frame_count == 1
    after = [state.data_ptr() for state in cache.layers[1].recurrent_states.values()] + addresses(cache.layers[0])
    assert after == before
    torch._dynamo.reset()


@pytest.mark.parametrize("name", only(["deepseek_v32"], ["deepseek_v3", "deepseek_v32"]))
def test_a_model_decodes_the_same_and_compiles_once(name):
    torch.manual_seed(0)
    fields = {"index_n_heads": 32, "index_head_dim": 8, "index_topk": 4} if name == "deepseek_v32" else {}
    config = AutoConfig.for_model(
        name,
        vocab_size=61,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=12,
        q_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=2,
        **fields,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.attention_type = "latent"
    ids = torch.randint(2, 61, (2, 20))
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    ours, plain = StaticCache(config, max_cache_len=LENGTH), StaticCache(config, max_cache_len=LENGTH)
    upgrade_cache(ours, model.config)
    assert {type(layer) for layer in ours.layers} <= {StaticLatentLayer, StaticIndexedLatentLayer}
    compiled = torch.compile(model.forward, backend=counter)

    def step(forward, cache, start, end):
        positions = torch.arange(start, end).unsqueeze(0)
        # As generate does: masks are made outside of what is compiled.
        mask = torch.arange(LENGTH) <= positions.unsqueeze(-1)
        return forward(
            ids[:, start:end],
            attention_mask=mask[:, None].expand(2, -1, -1, -1),
            position_ids=positions,
            past_key_values=cache,
        ).logits

    with torch.no_grad():
        torch.testing.assert_close(step(model, ours, 0, 9), step(model, plain, 0, 9))
        for position in range(9, 20):
            got = step(compiled, ours, position, position + 1)
            torch.testing.assert_close(got, step(model, plain, position, position + 1))
        assert counter.frame_count == 1
        for layer in (ours, plain):
            layer.reset()
        step(model, ours, 0, 3)
        for position in range(3, 9):
            step(compiled, ours, position, position + 1)
    assert counter.frame_count == 1, "recompiled for another length"
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_dynamic_layers_can_be_traced(small, monkeypatch):
    """Traced steps concatenate, as transformers' layers do, over what was written in place before and after."""
    monkeypatch.setattr(cache_storage, "CONCATENATED_BYTES", small)
    kinds = [(GrowingLayer, {}), (SlidingLayer, {"sliding_window": 4}), (LatentLayer, {})]
    ours = Cache(layers=[kind(**options) for kind, options in kinds])
    plain = Cache(layers=[DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4), DynamicLayer()])

    def step(cache, keys, values):
        return [part.clone() for index in range(3) for part in cache.update(keys, values, index)]

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager")
    with torch.no_grad():
        for count, traced in ((5, False), (1, False), (1, True), (2, True), (1, True), (1, False), (3, False)):
            new = states(count)
            for mine, other in zip((compiled if traced else step)(ours, *new), step(plain, *new), strict=True):
                assert torch.equal(mine, other)
    torch._dynamo.reset()
