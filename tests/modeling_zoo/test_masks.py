"""What a layer sees is its own: kinds of layers, windows, chunks and strides side by side in one model."""

import itertools

import pytest
import torch
from random_models import randomize
from transformers import DynamicCache, StaticCache
from ways_to_run import TOKENS, check_cached, check_generated, check_padded

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.attention_masks import MASK_BUILDERS, build_masks

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 6, "max_position_embeddings": 64, "num_hidden_layers": 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 6,
}  # fmt: skip
LINEAR_FIELDS = [name for name in SIZES if name.startswith("linear_")]
SLIDING, CHUNKED, FULL = "sliding_attention", "chunked_attention", "full_attention"
FIELDS = {SLIDING: "sliding_window", "hybrid_sliding": "sliding_window", CHUNKED: "attention_chunk_size"}
FIELDS |= dict.fromkeys(("strided", "fixed", "banded"), "sparse_attention_stride")


def visible(kind, size, starts):
    """`[B, 1, T, T]`, true where a query sees a key: the definition of each kind, `starts` `[B]` the padded tokens."""
    q, k = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    first = starts.view(-1, 1, 1, 1)
    rule = {
        FULL: q >= 0,
        SLIDING: q - k < (size or 0),
        CHUNKED: (q - first) // (size or 1) == (k - first) // (size or 1),
        "strided": (q - k < (size or 0)) | ((q - k) % (size or 1) == 0),
        "fixed": (q // (size or 1) == k // (size or 1)) | (k % (size or 1) == (size or 1) - 1),
        "banded": q - k < (size or 0),
    }[{"hybrid": FULL, "hybrid_sliding": SLIDING}.get(kind, kind)]
    return rule & (k <= q) & (k >= first)


def make(layers, attn_implementation="sdpa", **more):
    """A random model whose layers are these (kind, size) pairs; kinds are words or sparse patterns."""
    fields = {**SIZES, "num_hidden_layers": len(layers), **more}
    fields["layer_types"] = [FULL if "sparse" in FIELDS.get(kind, "") else kind for kind, _ in layers]
    if any("sparse" in FIELDS.get(kind, "") for kind, _ in layers):
        names = [kind if "sparse" in FIELDS.get(kind, "") else "none" for kind, _ in layers]
        fields["sparse_attention_pattern"] = names
    if any(kind.startswith("hybrid") for kind, _ in layers):
        fields["linear_attention_type"] = "gated_delta_net"
    else:
        fields = {name: value for name, value in fields.items() if name not in LINEAR_FIELDS}
    per_layer = {}
    for index, (kind, size) in enumerate(layers):
        if kind in FIELDS and fields.setdefault(FIELDS[kind], size) != size:
            per_layer[index] = {FIELDS[kind]: size}
    model = ZooForCausalLM(ZooConfig(**fields, **({"per_layer_config": per_layer} if per_layer else {})))
    model.set_attn_implementation(attn_implementation)
    return randomize(model) or model.eval()


def plain_logits(model, layers, tokens):
    """Logits of `tokens` where each layer is handed the mask that the definition of its kind gives."""

    def hand(kind, size):
        mask = visible(kind, size, torch.zeros(2, dtype=torch.long))
        if model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        own = {"linear_attention": None, FULL: mask} if kind.startswith("hybrid") else mask
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": own})

    hooks = [
        layer.register_forward_pre_hook(hand(*pair), with_kwargs=True)
        for layer, pair in zip(model.model.layers, layers, strict=True)
    ]
    logits = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@torch.no_grad()
def check(layers, attn_implementation="sdpa", **more):
    model = make(layers, attn_implementation, **more)
    tokens = torch.randint(3, 61, (2, TOKENS))
    expected = plain_logits(model, layers, tokens)
    check_cached(model, tokens, expected)
    # Patterns go by slot: padding takes part in their stride.
    padding = not any("sparse" in FIELDS.get(kind, "") for kind, _ in layers)
    if padding:
        check_padded(model, tokens, expected)
    check_generated(model, tokens, padding)


KINDS = {FULL: (None, None), SLIDING: (4, 7), CHUNKED: (5, 3), "hybrid_sliding": (3, 6), "hybrid": (None, None)}
KINDS |= {"strided": (4, 3), "fixed": (3, 5), "banded": (2, 4)}
EVERY_TIME = [
    [(SLIDING, 4), (CHUNKED, 8)],
    [(CHUNKED, 4), (SLIDING, 8)],
    [("hybrid_sliding", 4), (CHUNKED, 6)],
    [(SLIDING, 2), (SLIDING, 8), (FULL, None)],
    [(CHUNKED, 3), (CHUNKED, 8)],
    [("banded", 2), ("banded", 5)],
]


@pytest.mark.parametrize("layers", EVERY_TIME, ids=str)
def test_each_layer_sees_what_it_says(layers):
    check(layers)


ALL_PAIRS = [
    [(one, size), (other, KINDS[other][1])]
    for one, other in itertools.product(KINDS, repeat=2)
    for size in dict.fromkeys((KINDS[one][0], KINDS[one][1]))
]


@pytest.mark.long
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", ALL_PAIRS, ids=str)
def test_every_pair_of_kinds_and_sizes(layers, attn_implementation):
    check(layers, attn_implementation)
    check([*reversed(layers), (FULL, None)], attn_implementation)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_long_prompts_in_bands_see_the_same(backend):
    """Beyond a block of queries the rule itself goes to the layers."""
    layers = [(SLIDING, 20), (CHUNKED, 33), (SLIDING, 9)]
    model = make(layers, backend)
    tokens = torch.randint(3, 61, (1, 200))
    with torch.no_grad():
        whole = model(tokens).logits
        tail = torch.cat([model(tokens[:, :end]).logits[:, -1] for end in (21, 67, 133, 199)])
    assert (whole[0, [20, 66, 132, 198]] - tail).abs().max() < 1e-4


def test_layers_that_see_the_same_share_a_mask():
    """One mask for each distinct window, whatever else differs between layers."""
    layers = [(SLIDING, 4), (SLIDING, 7), (SLIDING, 4), (FULL, None), ("hybrid_sliding", 7)]
    names = [rule.name for rule in make(layers).model.mask_plan]
    assert names == ["sliding_attention 4", "sliding_attention 7", "full_attention", "linear_attention"]
    fields = {name: value for name, value in SIZES.items() if name not in LINEAR_FIELDS}
    model = ZooForCausalLM(ZooConfig(**fields, per_layer_config={1: {"intermediate_size": 9}}))
    assert [rule.name for rule in model.model.mask_plan] == ["full_attention"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make_cache", [None, DynamicCache, StaticCache])
@pytest.mark.parametrize("kind", [FULL, SLIDING, CHUNKED])
def test_masks_of_numbers_are_those_of_transformers(kind, make_cache, padded, dtype):
    """Without their copy of a number from the host; none at all where one query sees every key."""
    model = make([(kind, 5)] * 2, "eager")
    options = {"max_cache_len": 20} if make_cache is StaticCache else {}
    cache = make_cache and make_cache(config=model.config, **options)
    for seen, length in ((0, 7), (7, 1)) if make_cache else ((0, 7),):
        padding = torch.ones(2, seen + length, dtype=torch.long)
        padding[0, : 3 * padded] = 0
        call = (torch.zeros(2, length, 24, dtype=dtype), padding if padded else None, cache)
        (found,) = build_masks(model.config, *call).values()
        expected = MASK_BUILDERS[kind](model.config, *call, layer_idx=0)
        if found is None:
            assert length == 1 and make_cache is DynamicCache and not padded and expected.eq(0).all()
        else:
            assert found.dtype == dtype and torch.equal(found, expected)
        if cache is not None:
            for layer in range(2):
                cache.update(*torch.zeros(2, 2, 2, length, 6, dtype=dtype), layer)


def test_one_query_that_sees_every_key_needs_no_mask_of_numbers():
    model = make([(FULL, None)] * 2, "eager")
    assert build_masks(model.config, torch.zeros(2, 1, 24), None, DynamicCache(config=model.config)) == {FULL: None}


@pytest.mark.parametrize("kind", [FULL, SLIDING, CHUNKED])
def test_a_cache_that_has_no_layers_yet(kind):
    model = make([(kind, 5)] * 2)
    tokens = torch.randint(1, 61, (1, 3))
    cache = DynamicCache()
    found = [model(tokens[:, at : at + 1], past_key_values=cache).logits for at in range(3)]
    torch.testing.assert_close(torch.cat(found, 1), model(tokens).logits, rtol=1e-4, atol=1e-4)
