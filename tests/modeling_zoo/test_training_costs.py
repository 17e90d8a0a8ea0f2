"""What a training step writes grows with its tokens and not with their square: counted, for every recurrent mixer and
for attention in blocks of queries.

A loop over tokens, chunks or blocks that takes each by its index or by a slice has a gradient as large as all of them
for each.
"""

from functools import partial

import pytest
import torch
from counted_work import counted
from random_mixers import VARIANTS, WIDTH, mixer_of

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM


@pytest.mark.parametrize("variant", VARIANTS)
def test_work_grows_with_the_tokens(variant):
    mixer = mixer_of(variant)

    def step(length):
        mixer(torch.randn(1, length, WIDTH, requires_grad=True))[0].sum().backward()

    # Whole chunks, several segments of 512 tokens, and numbers with a root, by which a diagonal recurrence cuts.
    some, more = (counted(partial(step, length)) for length in (24**2, 48**2))
    assert more < 4.02 * some


LATENT = {"attention_type": "latent", "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
WINDOWS = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 60}
# Flags, and how many of their tokens are packed together.
BLOCKS = {
    "sliding": (WINDOWS, None),
    "sliding latent": (WINDOWS | LATENT, None),
    "shared keys": (WINDOWS | {"num_kv_shared_layers": 1}, None),
    "chunked": ({"layer_types": ["chunked_attention"] * 2, "attention_chunk_size": 64}, None),
    "packed": ({}, 96),
    "packed latent": (LATENT, 96),
    "packed sliding": (WINDOWS, 96),
    "chunked loss": ({"loss_chunk_size": 64}, None),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_queries(name):
    flags, packed = BLOCKS[name]
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = ZooConfig(vocab_size=29, intermediate_size=28, **sizes, **flags, attn_implementation="sdpa")
    model = ZooForCausalLM(config).train()

    def step(length):
        ids = torch.randint(0, 29, (1, length))
        told = {"position_ids": torch.arange(length).remainder(packed)[None]} if packed else {}
        model(ids, labels=ids, use_cache=False, **told).loss.backward()

    some, more = (counted(partial(step, length)) for length in (512, 2048))
    assert more < 4.15 * some
