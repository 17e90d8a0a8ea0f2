"""zoo's recurrent cache layers against transformers' where that is right, else against a recomputation from scratch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import (
    Cache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from modeling_zoo.cache_counting import CountingRecurrentLayer
from modeling_zoo.cache_hybrid import (
    RecurrentAndGrowingLayer,
    RecurrentAndSlidingLayer,
    RecurrentAndStaticLayer,
    RecurrentAndStaticSlidingLayer,
)
from modeling_zoo.cache_recurrent import RecurrentLayer

CHANNELS, TAPS, DECAY = 3, 4, 0.7


def scan(state, inputs):
    """s <- decay · s + x over the last axis: `[B, C]`, `[B, C, t]` -> `[B, C]`."""
    state = torch.zeros_like(inputs[..., 0]) if state is None else state
    for x in inputs.unbind(-1):
        state = DECAY * state + x
    return state


def mix(cache, inputs, weight, *, replays=True, conv=True, state_idx=0, layer_idx=0):
    """A tiny mixer over `[B, C, t]`: convolution, then a decaying sum; what every mixer says to its cache."""
    count, features, layer = inputs.shape[-1], inputs, cache.layers[layer_idx]
    before = layer.recurrent_states[state_idx] if layer.has_previous_state[state_idx] else None
    if conv:
        full = cache.update_conv_state(inputs, layer_idx, state_idx, conv_kernel_size=TAPS)
        features = F.conv1d(F.pad(full, (TAPS - 1, 0)), weight, groups=CHANNELS)[..., -count:]
    options = {"num_tokens": count}
    if replays:
        options["replay"] = lambda state, n: scan(state, features[..., :n])
    cache.update_recurrent_state(scan(before, features), layer_idx, state_idx, **options)
    return features


def cache_of(*layers):
    return Cache(layers=list(layers))


@pytest.fixture
def weight():
    return torch.randn(CHANNELS, 1, TAPS)


def states_of(layer, index=0):
    return layer.conv_states[index], layer.recurrent_states[index]


def assert_same(ours, theirs, **tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **tolerance)


# -- as transformers' layer ----------------------------------------------------------------------------------------


OPERATION = st.one_of(
    st.tuples(st.just("update"), st.sampled_from([1, 1, 2, 3, 4, 5, 9])),
    st.tuples(st.just("reorder"), st.integers(0, 9)),
    st.tuples(st.just("reset")),
)
PAIRS = {
    "recurrent": (RecurrentLayer, LinearAttentionLayer, {}),
    "hybrid": (RecurrentAndGrowingLayer, LinearAttentionAndFullAttentionLayer, {}),
    "hybrid_sliding": (
        RecurrentAndSlidingLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
        {"sliding_window": 4},
    ),
}


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
@settings(max_examples=30, deadline=None)
@given(operations=st.lists(OPERATION, max_size=12))
def test_layers_equal_transformers(case, operations):
    ours, theirs, options = case
    caches = [cache_of(layer(number_of_states=2, **options)) for layer in (ours, theirs)]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CHANNELS, 1, TAPS, generator=generator)
    has_attention = hasattr(ours, "get_seq_length")
    for name, *arguments in operations:
        if name == "update":
            (count,) = arguments
            inputs, keys = (torch.randn(2, CHANNELS, *shape, generator=generator) for shape in ((count,), (count, 5)))
            with torch.no_grad():
                for index in range(2):
                    assert_same(*([mix(cache, inputs, weight, state_idx=index)] for cache in caches), rtol=0, atol=0)
                if has_attention:
                    sizes = [cache.get_mask_sizes(count, 0) for cache in caches]
                    assert sizes[0] == sizes[1]
                    assert_same(*(cache.update(keys, keys + 1, 0) for cache in caches), rtol=0, atol=0)
        elif name == "reorder":
            rows = torch.randint(2, (2,), generator=torch.Generator().manual_seed(arguments[0]))
            for cache in caches:
                cache.reorder_cache(rows)
        else:
            caches[0].reset()
            caches[1] = cache_of(theirs(number_of_states=2, **options))
            continue
        layers = [cache.layers[0] for cache in caches]
        assert layers[0].has_previous_state == layers[1].has_previous_state
        for index in range(2):
            if layers[1].has_previous_state[index]:
                assert_same(*(states_of(layer, index) for layer in layers), rtol=0, atol=0)
        if has_attention:
            assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_what_transformers_asks_of_the_kinds():
    """`is_linear` and `is_sliding` decide which layer sizes which mask; up to 5.19 the latter alone does."""
    dynamic = cache_of(
        RecurrentLayer(),
        RecurrentAndGrowingLayer(),
        RecurrentAndSlidingLayer(sliding_window=4),
        CountingRecurrentLayer(),
    )
    plain = cache_of(
        LinearAttentionLayer(),
        LinearAttentionAndFullAttentionLayer(),
        LinearAttentionAndSlidingWindowAttentionLayer(sliding_window=4),
        LinearAttentionLayer(),
    )
    assert dynamic.is_linear == plain.is_linear and dynamic.is_sliding == [None, False, True, None]
    assert [layer.is_compileable for layer in dynamic.layers] == [layer.is_compileable for layer in plain.layers]
    assert [layer.supports_early_init for layer in dynamic.layers] == [False] * 4
    static = cache_of(RecurrentAndStaticLayer(8), RecurrentAndStaticSlidingLayer(8, sliding_window=4))
    assert static.is_compileable and static.is_sliding == [False, True]


def test_a_mixer_without_convolution_reads_its_state_back():
    """transformers marks a state as present in the convolution's update alone."""
    ours, theirs = cache_of(RecurrentLayer()), cache_of(LinearAttentionLayer())
    inputs = torch.randn(2, CHANNELS, 9)
    with torch.no_grad():
        for chunk in inputs.split([4, 1, 1, 3], dim=-1):
            for cache in (ours, theirs):
                mix(cache, chunk, None, conv=False)
    torch.testing.assert_close(ours.layers[0].recurrent_states[0], scan(None, inputs))
    assert not theirs.layers[0].has_previous_state[0] and ours.has_previous_state(0)


def test_short_prompts_leave_a_full_window(weight):
    """Recording or not, the zeros before the first token are part of the window."""
    inputs = torch.randn(2, CHANNELS, 5)
    for recording in (False, True):
        cache = cache_of(RecurrentLayer())
        if recording:
            cache.activate_past_recording()
        with torch.no_grad():
            mix(cache, inputs[..., :2], weight)
            if recording:
                cache.crop(0)
        assert torch.equal(cache.layers[0].conv_states[0], F.pad(inputs[..., :2], (2, 0)))
        with torch.no_grad():
            got = mix(cache, inputs[..., 2:], weight)
        torch.testing.assert_close(got, F.conv1d(F.pad(inputs, (TAPS - 1, 0)), weight, groups=CHANNELS)[..., 2:])


# -- rollback ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("conv", [True, False], ids=["conv", "no_conv"])
@pytest.mark.parametrize("kind", ["recurrent", "hybrid", "hybrid_sliding", "counting"])
@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 18)), max_size=5))
def test_rollback_restores_the_state_of_then(kind, conv, rounds):
    """After any drafts and any rejected number of tokens the layer is as one that saw the accepted tokens alone."""
    layer, options = (CountingRecurrentLayer, {}) if kind == "counting" else (PAIRS[kind][0], PAIRS[kind][2])
    cache = cache_of(layer(**options))
    weight, accepted = torch.randn(CHANNELS, 1, TAPS), torch.randn(2, CHANNELS, 3)
    has_attention = kind.startswith("hybrid")

    def feed(cache, inputs):
        with torch.no_grad():
            mix(cache, inputs, weight, conv=conv)
            if has_attention:
                cache.update(inputs.transpose(1, 2)[:, None], inputs.transpose(1, 2)[:, None] + 1, 0)
            if kind == "counting":
                cache.layers[0].advance(inputs.shape[-1])

    feed(cache, accepted)
    cache.activate_past_recording()
    for counts, rejected in rounds:
        drafted = [torch.randn(2, CHANNELS, count) for count in counts]
        for draft in drafted:
            feed(cache, draft)
        rejected = min(rejected, sum(counts))
        cache.crop(-rejected)
        accepted = torch.cat([accepted, *drafted], dim=-1)
        accepted = accepted[..., : accepted.shape[-1] - rejected]
        fresh = cache_of(layer(**options))
        feed(fresh, accepted)
        assert_same(states_of(cache.layers[0]), states_of(fresh.layers[0]))
        if has_attention or kind == "counting":
            assert cache.get_seq_length() == fresh.get_seq_length() == accepted.shape[-1]
        if has_attention:
            assert cache.get_mask_sizes(2, 0) == fresh.get_mask_sizes(2, 0)
            torch.testing.assert_close(cache.layers[0].keys, fresh.layers[0].keys)
    assert cache.is_croppable


def test_rollback_to_before_the_first_token(weight):
    """The first forward of assisted decoding holds the prompt and the draft; all of it may go."""
    cache, inputs = cache_of(RecurrentLayer()), torch.randn(2, CHANNELS, 6)
    cache.activate_past_recording()
    with torch.no_grad():
        mix(cache, inputs, weight)
        cache.crop(-6)
        assert not cache.has_previous_state(0)
        got = mix(cache, inputs[..., :2], weight)
    torch.testing.assert_close(got, F.conv1d(F.pad(inputs[..., :2], (TAPS - 1, 0)), weight, groups=CHANNELS))
    torch.testing.assert_close(cache.layers[0].recurrent_states[0], scan(None, got))


def test_a_mixer_that_knows_nothing_of_rollback_gives_back_whole_forwards(weight):
    """transformers' own mixers: lengths are known from the convolution, a part of a forward is refused."""
    cache = cache_of(RecurrentLayer())
    cache.activate_past_recording()

    def foreign(inputs):
        with torch.no_grad():
            layer = cache.layers[0]
            before = layer.recurrent_states[0]
            full = cache.update_conv_state(inputs, 0, conv_kernel_size=TAPS)
            features = F.conv1d(F.pad(full, (TAPS - 1, 0)), weight, groups=CHANNELS)[..., -inputs.shape[-1] :]
            cache.update_recurrent_state(scan(before, features), 0)

    foreign(torch.randn(2, CHANNELS, 5))
    before = copy.deepcopy(states_of(cache.layers[0]))
    foreign(torch.randn(2, CHANNELS, 3))
    with pytest.raises(RuntimeError, match="whole forwards"):
        cache.crop(-2)
    assert not cache.is_croppable
    cache.crop(-3)
    assert torch.equal(cache.layers[0].recurrent_states[0], before[1])
    assert torch.equal(cache.layers[0].conv_states[0], before[0][..., -TAPS:])


def refusals():
    def not_recording(cache, weight):
        mix(cache, torch.randn(2, CHANNELS, 3), weight)
        return -1, "activate_past_recording"

    def positive(cache, weight):
        cache.activate_past_recording()
        return 1, r"crop\(1\)"

    def more_than_recorded(cache, weight):
        mix(cache, torch.randn(2, CHANNELS, 3), weight)
        cache.activate_past_recording()
        mix(cache, torch.randn(2, CHANNELS, 2), weight)
        return -3, "2 tokens are recorded"

    def more_than_recorded_without_convolution(cache, weight):
        mix(cache, torch.randn(2, CHANNELS, 3), weight, conv=False)
        cache.activate_past_recording()
        mix(cache, torch.randn(2, CHANNELS, 2), weight, conv=False)
        return -3, "2 tokens are recorded"

    def rows_exchanged(cache, weight):
        cache.activate_past_recording()
        mix(cache, torch.randn(2, CHANNELS, 3), weight)
        cache.reorder_cache(torch.tensor([1, 0]))
        return -1, "0 tokens are recorded"

    def columns_that_are_not_the_tokens(cache, weight):
        cache.activate_past_recording()
        mix(cache, torch.randn(2, CHANNELS, 3), weight)
        cache.update_conv_state(torch.randn(2, CHANNELS, TAPS), 0, conv_kernel_size=TAPS)
        cache.update_recurrent_state(torch.randn(2, CHANNELS), 0, num_tokens=6, replay=scan)
        return -1, "7 columns for 9 tokens"

    def unknown_length(cache, weight):
        cache.activate_past_recording()
        cache.update_recurrent_state(torch.randn(2, CHANNELS), 0)
        return -1, "num_tokens"

    return [value for value in locals().values() if callable(value)]


@pytest.mark.parametrize("prepare", refusals(), ids=lambda function: function.__name__)
@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_rollback_that_cannot_be_exact_is_refused_and_changes_nothing(prepare, kind, weight):
    cache = cache_of(PAIRS[kind][0]())
    with torch.no_grad():
        count, message = prepare(cache, weight)
        cache.layers[0].update(torch.randn(2, 1, 4, 2), torch.randn(2, 1, 4, 2)) if kind == "hybrid" else None
        before = copy.deepcopy(states_of(cache.layers[0]))
        with pytest.raises(RuntimeError, match=message):
            cache.crop(count)
    assert_same(states_of(cache.layers[0]), before, rtol=0, atol=0)
    assert kind != "hybrid" or cache.get_seq_length() == 4


def test_a_state_changed_in_place_while_recording_is_noticed():
    cache = cache_of(RecurrentLayer())
    cache.activate_past_recording()
    with torch.no_grad():
        cache.update_recurrent_state(torch.randn(2, CHANNELS), 0, num_tokens=1)
        with pytest.raises(RuntimeError, match="in place"):
            cache.update_recurrent_state(states_of(cache.layers[0])[1].mul_(2), 0)


# -- rows, dtypes, gradients, counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [RecurrentLayer, RecurrentAndGrowingLayer])
def test_rows_are_repeated_and_selected(layer, weight):
    cache, inputs = cache_of(layer()), torch.randn(3, CHANNELS, 5)
    with torch.no_grad():
        mix(cache, inputs, weight)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([5, 0]))
    fresh = cache_of(layer())
    with torch.no_grad():
        mix(fresh, inputs[[2, 0]], weight)
    assert_same(states_of(cache.layers[0]), states_of(fresh.layers[0]))


def test_decoding_writes_states_in_place(weight):
    cache = cache_of(RecurrentLayer())
    pointers = set()
    with torch.no_grad():
        for _ in range(5):
            mix(cache, torch.randn(2, CHANNELS, 1), weight)
            cache.reorder_cache(torch.tensor([1, 0]))
            pointers.add(tuple(state.data_ptr() for state in states_of(cache.layers[0])))
    assert len(pointers) == 1


def test_a_float32_state_is_not_rounded_to_an_earlier_dtype():
    cache = cache_of(RecurrentLayer())
    state = torch.randn(2, CHANNELS)
    with torch.no_grad():
        cache.update_recurrent_state(state.bfloat16(), 0, num_tokens=1)
        cache.update_recurrent_state(state, 0, num_tokens=1)
    assert torch.equal(states_of(cache.layers[0])[1], state)


def test_another_batch_after_a_reset(weight):
    cache = cache_of(RecurrentLayer())
    with torch.no_grad():
        mix(cache, torch.randn(3, CHANNELS, 2), weight)
        cache.reset()
        inputs = torch.randn(1, CHANNELS, 2)
        mix(cache, inputs, weight)
    fresh = cache_of(RecurrentLayer())
    with torch.no_grad():
        mix(fresh, inputs, weight)
    assert_same(states_of(cache.layers[0]), states_of(fresh.layers[0]))


def test_gradients_pass_through_several_forwards(weight):
    """Writing in place, transformers' layer breaks the first forward's backward."""
    inputs, whole = torch.randn(2, CHANNELS, 6, requires_grad=True), cache_of(RecurrentLayer())
    mix(whole, inputs, weight)
    (want,) = torch.autograd.grad(states_of(whole.layers[0])[1].square().sum(), inputs)
    parts = cache_of(RecurrentLayer())
    for chunk in inputs.split([3, 1, 2], dim=-1):
        mix(parts, chunk, weight)
    (got,) = torch.autograd.grad(states_of(parts.layers[0])[1].square().sum(), inputs)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_cache_of_recurrent_layers_alone_knows_its_length(on_device):
    cache = cache_of(CountingRecurrentLayer(counts_on_device=on_device), RecurrentLayer())
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        for count in (5, 1):
            mix(cache, torch.randn(2, CHANNELS, count), None, conv=False)
            cache.layers[0].advance(count)
    assert cache.get_seq_length() == 6 and cache.get_mask_sizes(2, 0) == (8, 0)
    assert isinstance(cache.get_seq_length(), torch.Tensor) == on_device
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.is_linear == [True, True]


def test_uncounted_tokens_are_noticed():
    cache = cache_of(CountingRecurrentLayer())
    with torch.no_grad():
        mix(cache, torch.randn(2, CHANNELS, 5), None, conv=False)
    with pytest.raises(RuntimeError, match="advance"):
        cache.get_seq_length()
    with pytest.raises(NotImplementedError, match="keys and values"):
        cache.update(torch.randn(1, 1, 1, 1), torch.randn(1, 1, 1, 1), 0)
