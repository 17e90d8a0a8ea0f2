"""One query per head, heads in groups: the keys of a group are read once, and nothing else changes."""

import pytest
import torch
from test_attention_bands import make, padded_tokens
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_zoo import ops_attention
from modeling_zoo.ops_attention import eager_attention_forward, fast_form, gqa_decode


class Groups(nn.Module):
    """What an attention function asks of its module."""

    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def states(batch=3, heads=6, kv_heads=2, keys=11, width=10, value_width=14):
    torch.manual_seed(1)
    query = torch.randn(batch, heads, 1, width, dtype=torch.float64)
    return (
        query,
        torch.randn(batch, kv_heads, keys, width).double(),
        torch.randn(batch, kv_heads, keys, value_width).double(),
    )


def masks(batch=3, heads=6, keys=11):
    torch.manual_seed(2)
    seen = torch.rand(batch, 1, 1, keys) > 0.4
    seen[..., -1] = True
    bias = torch.randn(batch, heads, 1, keys).double()
    return {"none": None, "booleans": seen, "numbers": bias[:, :1], "numbers per head": bias}


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_equals_the_plain_form(kv_heads, kind):
    query, key, value = states(kv_heads=kv_heads)
    mask = masks()[kind]
    added = torch.zeros(mask.shape).double().masked_fill(~mask, -torch.inf) if kind == "booleans" else mask
    expected, _ = eager_attention_forward(Groups(6 // kv_heads).eval(), query, key, value, added, 0.3)
    torch.testing.assert_close(gqa_decode(query, key, value, mask, 0.3), expected.double(), rtol=1e-6, atol=1e-6)
    theirs, _ = sdpa_attention_forward(Groups(6 // kv_heads), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(gqa_decode(query, key, value, mask, 0.3), theirs)


SPECIAL = {"dropout": 0.1, "position_bias": torch.zeros(1), "cache": object(), "softcap": 3.0, "s_aux": torch.zeros(1)}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_it_cannot_compute_is_left_to_the_backend(name):
    query, key, value = states()
    assert fast_form("sdpa", query, key, value, None) is gqa_decode
    assert fast_form("sdpa", query, key, value, None, **{name: SPECIAL[name]}) is None


def test_only_where_it_is_faster():
    query, key, value = states()
    assert fast_form("eager", query, key, value, None) is None
    assert fast_form("sdpa", query.expand(-1, -1, 2, -1), key, value, None) is None
    assert fast_form("sdpa", query, query, value, None) is None
    assert fast_form("sdpa", query.to("meta"), key, value, None) is None


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_decoding_goes_through_it(cache, padding, monkeypatch):
    calls = []
    monkeypatch.setattr(ops_attention, "gqa_decode", lambda *args: calls.append(args) or gqa_decode(*args))
    tokens, mask = padded_tokens(9, padding)
    found, plain = make({}), make({}, "eager")
    options = {"max_cache_len": 12} if cache is StaticCache else {}
    held = cache(config=found.config, **options)
    for start, stop in ((0, 7), (7, 8), (8, 9)):
        here = {"attention_mask": mask[:, :stop]} if padding else {}
        logits = found(tokens[:, start:stop], past_key_values=held, **here).logits
    here = {"attention_mask": mask} if padding else {}
    expected = plain(tokens, use_cache=False, **here).logits[:, -1:]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 * 2
