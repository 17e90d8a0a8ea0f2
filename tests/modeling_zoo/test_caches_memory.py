"""What an allocator that keeps what is given back, as a device has, reserves for a cache that grows; played here."""

import pytest
import torch
from random_models import randomize
from tiny_fields import GROUPED, LATENT, WIDTHS
from transformers import DynamicCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, cache_storage
from modeling_zoo.cache_growing import GrowingLayer
from modeling_zoo.cache_indexed import IndexedLatentLayer
from modeling_zoo.cache_storage import TokenBuffer, storage_size
from modeling_zoo.cache_upgrade import expect_tokens, upgrade_cache

# Bytes that are free on the device of these tests.
FREE = 10**9


class Allocator:
    """Blocks that were given back serve requests that fit, and are never returned."""

    def __init__(self):
        self.reserved, self.spare = 0, []

    def get(self, size):
        fitting = [block for block in self.spare if block >= size]
        if not fitting:
            self.reserved += size
            return size
        self.spare.remove(min(fitting))
        return min(fitting)

    def give_back(self, block):
        self.spare.append(block)


def reserved(start, stop, layers, expected=None):
    """Tokens reserved over tokens held, where `layers` grow from `start` to `stop`, token by token."""
    allocator, held, capacity = Allocator(), [0] * layers, 0
    for needed in range(start, stop + 1, 64):
        if needed > capacity:
            capacity = expected if expected else storage_size(needed, on_device=True)
            for index in range(layers):
                block = allocator.get(capacity)
                if held[index]:
                    allocator.give_back(held[index])
                held[index] = block
    return allocator.reserved / (layers * stop)


def test_what_is_announced_is_reserved_once():
    assert reserved(8192, 40960, 16, expected=40960) <= 1.2


def test_unannounced_growth_reserves_a_bounded_multiple():
    """Steps of one size reserve the square: 17 times a latent cache of 128k tokens."""
    for stop in (32768, 131072, 524288):
        assert reserved(8192, stop, 61) < 4.5


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(cache_storage, "is_on_device", lambda tensor: True)
    monkeypatch.setattr(cache_storage, "free_memory", lambda device: FREE)


def capacity(buffer):
    return buffer.storage.shape[-2]


@torch.no_grad()
def test_room_for_all_tokens_is_made_once(device):
    buffer, states = TokenBuffer(), torch.randn(2, 1, 900, 64)
    buffer.expect(5000, 0.01)
    buffer.append(states)
    places = {buffer.append(states[:, :, :1]).data_ptr() for _ in range(300)}
    assert capacity(buffer) == 5000 and len(places) == 1
    # A sequence that is continued past that grows as any other.
    buffer.append(states.expand(-1, -1, -1, -1).repeat(1, 1, 6, 1))
    assert len(buffer) == 6600 and capacity(buffer) == storage_size(6600, on_device=True) == 6600 + 4096


@torch.no_grad()
def test_too_much_is_not_reserved(device):
    buffer = TokenBuffer()
    buffer.expect(10**6, 0.01)
    buffer.append(torch.randn(2, 1, 900, 64))
    assert capacity(buffer) == 1800
    buffer.expect(2000, 0.0)
    buffer.append(torch.randn(2, 1, 901, 64))
    assert capacity(buffer) == 2000


@torch.no_grad()
def test_on_a_cpu_nothing_is_reserved_ahead():
    buffer = TokenBuffer()
    buffer.expect(5000, 1.0)
    buffer.append(torch.randn(2, 1, 900, 64))
    assert capacity(buffer) == 1800


def test_every_buffer_of_a_cache_is_told_its_share():
    layers = [GrowingLayer(), IndexedLatentLayer()]
    cache = DynamicCache()
    cache.layers = layers
    expect_tokens(cache, None)
    assert layers[0].store.buffers[0].expected is None
    expect_tokens(cache, 77)
    buffers = [*layers[0].store.buffers, *layers[1].store.buffers, layers[1].indexer_buffer]
    assert [buffer.expected for buffer in buffers] == [77] * 4
    assert [buffer.share for buffer in buffers] == [0.125, 0.125, 0.25, 0.25]


@torch.no_grad()
@pytest.mark.parametrize("fields", [GROUPED, LATENT], ids=["grouped", "latent"])
def test_generate_announces_its_tokens(fields, device, monkeypatch):
    monkeypatch.setattr(cache_storage, "CONCATENATED_BYTES", 0)
    sizes = WIDTHS | {"vocab_size": 31, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = ZooForCausalLM(ZooConfig(**sizes, **fields)).eval()
    randomize(model)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    result = model.generate(torch.randint(3, 31, (2, 7)), return_dict_in_generate=True, **options)
    for layer in result.past_key_values.layers:
        assert [capacity(buffer) for buffer in layer.store.buffers] == [16] * len(layer.store.buffers)
    again = upgrade_cache(DynamicCache(config=model.config), model.config)
    assert again.layers[0].store.buffers[0].expected is None
