"""Attention in bands: against the plain path, transformers' own square masks and eager scores."""

import pytest
import torch
from random_models import randomize
from samples import every
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ops_attention, ops_attention_latent, ops_attention_sparse
from modeling_zoo.attention_masks import build_masks
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.ops_attention_bands import BandMask

WINDOW = 6
SIZES = {
    "vocab_size": 31, "hidden_size": 36, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 128,
}  # fmt: skip
LATENT = {
    "attention_type": "latent", "kv_lora_rank": 14, "q_lora_rank": 18, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6,
    "v_head_dim": 10, "num_key_value_heads": 6, "head_dim": None,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
CHUNKED = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": WINDOW}
CASES = {
    "sliding": SLIDING,
    "chunked": CHUNKED,
    "multi-head": SLIDING | {"num_key_value_heads": 6},
    "latent": LATENT | SLIDING,
    "beside a recurrence": SLIDING | {
        "layer_types": ["hybrid_sliding", "sliding_attention"], "linear_attention_type": "short_conv",
        "linear_conv_kernel_dim": 4,
    },
}  # fmt: skip


def make(flags, backend="sdpa"):
    torch.manual_seed(1)
    model = ZooForCausalLM(ZooConfig(**(SIZES | flags), attn_implementation=backend))
    randomize(model)
    return model.eval()


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(ops_attention, "CPU_BLOCK", 4)


@pytest.fixture
def passes(monkeypatch):
    """The (queries, keys) of every pass over a band."""
    seen = []
    real = ops_attention.banded_attention

    def watched(attend, query, key, value, band, block):
        def counted(query, key, value, mask):
            seen.append((query.shape[2], key.shape[2]))
            return attend(query, key, value, mask)

        return real(counted, query, key, value, band, block)

    monkeypatch.setattr(ops_attention, "banded_attention", watched)
    return seen


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def padded_tokens(length, padding):
    tokens = torch.randint(1, 31, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    return tokens, mask


@torch.no_grad()
def compare(flags, length, padding=0, steps=None, **kwargs):
    """Logits in bands, in `steps` over a cache if given, against those of the plain path at once, where there is no
    padding."""
    tokens, mask = padded_tokens(length, padding)
    mask_of = {"attention_mask": mask} if padding else {}
    expected = make(flags, "eager")(tokens, use_cache=False, **mask_of, **kwargs).logits
    model = make(flags)
    if steps is None:
        found = model(tokens, use_cache=False, **mask_of, **kwargs).logits
    else:
        cache, parts, start = DynamicCache(config=model.config), [], 0
        for count in steps:
            seen = {name: part[:, : start + count] for name, part in mask_of.items()}
            here = tokens[:, start : start + count]
            parts.append(model(here, past_key_values=cache, **seen, **kwargs).logits)
            start += count
        found = torch.cat(parts, dim=1)
    assert found.isfinite().all()
    real = mask.bool()
    assert relative_error(found[real], expected[real]) < 4e-6


@pytest.mark.sampled(3)
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 3 * WINDOW + 1])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_path(case, length, passes):
    compare(CASES[case], length)
    banded = length >= WINDOW
    assert bool(passes) is banded
    if banded:
        assert max(queries for queries, _ in passes) == 4
        assert max(keys for _, keys in passes) <= WINDOW - 1 + 4


@pytest.mark.sampled(5)
@pytest.mark.parametrize("length", [WINDOW, WINDOW + 1, 3 * WINDOW + 1])
@pytest.mark.parametrize("padding", [1, WINDOW + 3])
@pytest.mark.parametrize("case", [case for case in CASES if case != "beside a recurrence"])
def test_left_padding(case, padding, length, passes):
    compare(CASES[case], length, padding=min(padding, length - 1))
    assert passes


@pytest.mark.sampled(5)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("steps", [(3, 17), (11, 9), (7, 1, 12), (13, 6, 1)])
@pytest.mark.parametrize("case", ["sliding", "chunked", "latent"])
def test_goes_on_from_a_cache(case, steps, padding, passes):
    compare(CASES[case], sum(steps), padding, steps)
    assert passes


@pytest.mark.parametrize("case", ["sliding", "chunked", "latent"])
def test_packed_sequences(case, passes):
    positions = torch.cat([torch.arange(count) for count in (9, 3, 11)])[None]
    compare(CASES[case], 23, position_ids=positions)
    # Chunks of packed sequences are left to transformers' masks, here and in the full layer as well.
    assert bool(passes) is True


@pytest.mark.parametrize("flags", [{"attention_sinks": "all"}, {"attn_logit_softcapping": 5.0}, {}])
def test_backends_that_need_the_square_get_it(flags):
    config = ZooConfig(**(SIZES | SLIDING | flags), attn_implementation="eager")
    masks = build_masks(config, torch.zeros(1, 20, 36), None, None, torch.arange(20)[None])
    assert masks["sliding_attention"].shape == (1, 1, 20, 20)


@pytest.mark.parametrize("kind", ["alibi", "relative", "transformer_xl"])
def test_biased_scores_get_the_square(kind):
    config = ZooConfig(**(SIZES | SLIDING | {"position_embedding_type": kind}), attn_implementation="sdpa")
    masks = build_masks(config, torch.zeros(1, 20, 36), None, None, torch.arange(20)[None])
    assert masks["sliding_attention"].shape == (1, 1, 20, 20)


def test_masks_for_generate_are_rules_for_a_prompt_and_tensors_for_a_token():
    config = ZooConfig(**(SIZES | SLIDING), attn_implementation="sdpa")
    cache = StaticCache(config=config, max_cache_len=30)
    prompt = ZooForCausalLM.create_masks_for_generate(config, torch.zeros(1, 20, 36), torch.ones(1, 20), cache)
    assert isinstance(prompt["sliding_attention"], BandMask) and not prompt["sliding_attention"].tensors
    # Causal from the first slot on: the backend knows that without a mask.
    assert prompt["full_attention"] is None
    token = ZooForCausalLM.create_masks_for_generate(config, torch.zeros(1, 1, 36), torch.ones(1, 1), cache)
    assert all(mask is None or isinstance(mask, torch.Tensor) for mask in token.values())


@pytest.mark.parametrize("word", ["sliding_attention", "chunked_attention", "full_attention"])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("seen", [0, 4, 9])
@pytest.mark.parametrize("static", [False, True])
def test_the_rule_is_transformers_mask(word, padding, seen, static):
    """Every block of the rule is that block of the square that transformers' builder makes."""
    flags = {"chunked_attention": CHUNKED}.get(word, SLIDING)
    config = ZooConfig(**(SIZES | flags), attn_implementation="sdpa")
    cache, length = StaticCache(config=config, max_cache_len=29) if static else DynamicCache(config=config), 13
    if seen:
        for index in range(2):
            cache.update(torch.zeros(2, 2, seen, 10), torch.zeros(2, 2, seen, 10), index)
    mask = torch.ones(2, seen + length, dtype=torch.long)
    mask[1, :padding] = 0
    inputs = torch.zeros(2, length, 36)
    rule = build_masks(config, inputs, mask, cache)[word]
    square = build_masks(config, inputs, mask, cache, compact=False)[word]
    if square is None:
        assert rule is None
        return
    assert isinstance(rule, BandMask)
    for start, stop in ((0, 4), (4, 8), (8, 12), (12, 13), (0, 13)):
        first, last = rule.span(start, stop)
        outside = square[:, :, start:stop].clone()
        outside[..., first:last] = False
        assert not outside.any()
        block = rule.block(start, stop, "cpu", first, last)
        assert torch.equal(block.expand(2, -1, -1, -1), square[:, :, start:stop, first:last])
    assert rule.to("cpu").block(3, 9, "cpu").equal(rule.block(3, 9, "cpu"))


@pytest.mark.parametrize("word", ["sliding_attention", "chunked_attention", "full_attention"])
@pytest.mark.parametrize("padding", [None, 0, 2, 5])
@pytest.mark.parametrize("kind", ["transformers'", "ours", "static"])
def test_one_query_that_sees_all_its_keys_has_no_mask(word, padding, kind):
    """Window - 1, window, window + 1, 3 × window: None only where transformers' mask hides nothing, else that mask."""
    config = ZooConfig(**(SIZES | ({"chunked_attention": CHUNKED}.get(word, SLIDING))), attn_implementation="sdpa")
    for seen in (WINDOW - 2, WINDOW - 1, WINDOW, 3 * WINDOW - 1):
        cache = StaticCache(config=config, max_cache_len=29) if kind == "static" else DynamicCache(config=config)
        cache = upgrade_cache(cache, config) if kind == "ours" else cache
        for index in range(2):
            cache.update(torch.zeros(2, 2, seen, 10), torch.zeros(2, 2, seen, 10), index)
        mask = None if padding is None else torch.ones(2, seen + 1, dtype=torch.long)
        if padding:
            mask[1, :padding] = 0
        found, expected = (
            build_masks(config, torch.zeros(2, 1, 36), mask, cache, compact=compact)[word] for compact in (True, False)
        )
        first = seen + 1 - WINDOW if word == "sliding_attention" else 0
        bare = kind != "static" and word != "chunked_attention" and (padding or 0) <= max(first, 0)
        assert not bare or found is None
        if found is None:
            assert expected is None or bool(expected.all())
        else:
            assert torch.equal(found, expected)


class Largest(TorchDispatchMode):
    """The largest tensor any operation makes, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor) and part.is_contiguous():
                self.elements = max(self.elements, part.numel())
        return result


@pytest.mark.parametrize("padding", every(2, [0, 3]))
@pytest.mark.parametrize("case", ["sliding", "chunked", "latent"])
def test_memory_is_linear_in_the_length(case, padding):
    flags = CASES[case] | {"layer_types": [CASES[case]["layer_types"][0]] * 2, "max_position_embeddings": 1024}
    largest = []
    for length in (300, 600):
        tokens, mask = padded_tokens(length, padding)
        model = make(flags)
        with torch.no_grad(), Largest() as watcher:
            model(tokens, attention_mask=mask, logits_to_keep=1)
        largest.append(watcher.elements)
    assert largest[1] <= 2.01 * largest[0]


@pytest.mark.parametrize("case", ["sliding", "latent"])
def test_gradients_pass_through_bands(case, passes):
    tokens, mask = padded_tokens(3 * WINDOW, 0)
    found, expected = make(CASES[case]), make(CASES[case], "eager")
    for model in (found, expected):
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    assert passes
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert relative_error(one.grad, other.grad) < 3e-5, name


@torch.no_grad()
@pytest.mark.parametrize("case", ["sliding", "chunked", "latent"])
def test_generates_the_same_tokens(case, passes):
    tokens, mask = padded_tokens(3 * WINDOW, 2)
    arguments = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    arguments["eos_token_id"] = None
    expected = make(CASES[case], "eager").generate(tokens, **arguments)
    assert torch.equal(make(CASES[case]).generate(tokens, **arguments), expected)
    assert torch.equal(make(CASES[case]).generate(tokens, **arguments, prefill_chunk_size=7), expected)
    assert passes


@pytest.mark.sampled(3)
@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("case", ["sliding", "chunked", "latent", "multi-head"])
def test_a_cache_of_fixed_size_reads_its_prompt_in_bands(case, chunk, passes):
    tokens, mask = padded_tokens(3 * WINDOW, 2)
    arguments = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    arguments |= {"eos_token_id": None, "cache_implementation": "static", "prefill_chunk_size": chunk}
    expected = make(CASES[case], "eager").generate(tokens, **arguments)
    assert not passes
    assert torch.equal(make(CASES[case]).generate(tokens, **arguments), expected)
    assert max(queries for queries, _ in passes) == 4
    # Sliding layers see no more than a window; full ones, whose slots are there from the start, no more than was read.
    assert min(keys for _, keys in passes) <= 4 and max(keys for _, keys in passes) <= 3 * WINDOW


INDEXED = LATENT | {
    "layer_types": ["indexed_attention"] * 2, "index_topk": 5, "index_n_heads": 3, "index_head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("flags", [LATENT, LATENT | {"num_key_value_heads": 3}, INDEXED])
def test_heads_expanded_a_few_at_a_time(flags, padding, monkeypatch):
    """The last group of heads is smaller than the others."""
    monkeypatch.setattr(ops_attention_latent, "MOST_EXPANDED", 4 * 2 * 23 * 24)
    expanded = []
    real = ops_attention_latent.expanded

    def watched(query, up_projected, *args):
        expanded.append(up_projected.shape[1])
        return real(query, up_projected, *args)

    monkeypatch.setattr(ops_attention_latent, "expanded", watched)
    monkeypatch.setattr(ops_attention_sparse, "gatherable_maps", lambda *args: None)
    compare(flags, 23, padding)
    groups = [3] if flags.get("num_key_value_heads") == 3 else [4, 2]
    assert expanded == [sum(groups)] * 2 + groups * 2
