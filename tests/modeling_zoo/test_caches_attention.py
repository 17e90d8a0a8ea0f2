"""zoo's attention cache layers against transformers' own, driven with the same random operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from modeling_zoo import cache_storage
from modeling_zoo.cache_growing import GrowingLayer, LatentLayer
from modeling_zoo.cache_indexed import IndexedLatentLayer, IndexedLayer
from modeling_zoo.cache_quantized import (
    QuantizedGrowingLayer,
    QuantizedIndexedLatentLayer,
    QuantizedIndexedLayer,
    QuantizedLatentLayer,
    QuantizedSlidingLayer,
    dequantize,
    quantize,
)
from modeling_zoo.cache_sliding import SlidingLatentLayer, SlidingLayer
from modeling_zoo.cache_storage import CONCATENATED_BYTES, MAX_SPARE, MIN_SPARE

HEADS, KEY, VALUE, INDEX = 3, 5, 7, 4
# ours, transformers' own, heads: a latent has one.
FULL = {
    "growing": (GrowingLayer, DynamicLayer, HEADS),
    "latent": (LatentLayer, DynamicLayer, 1),
    "indexed": (IndexedLayer, DynamicIndexedLayer, HEADS),
    "indexed_latent": (IndexedLatentLayer, DynamicIndexedLayer, 1),
}
SLIDING = {
    "sliding": (SlidingLayer, DynamicSlidingWindowLayer, HEADS),
    "sliding_latent": (SlidingLatentLayer, DynamicSlidingWindowLayer, 1),
}
# Widths of a step: one token, a verification, a chunk, more than any window of these tests holds.
STEPS = st.sampled_from([1, 1, 1, 2, 3, 5, 9, 40])
OPERATION = st.one_of(
    st.tuples(st.just("update"), STEPS, st.sampled_from(["no_grad", "no_grad", "no_grad", "inference", "grad"])),
    st.tuples(st.just("crop"), st.integers(0, 6)),
    st.tuples(st.just("reorder"), st.integers(0, 99)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("select"), st.integers(0, 99)),
    st.tuples(st.just("record")),
    st.tuples(st.just("reset")),
)
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


@pytest.fixture(autouse=True, scope="module")
def in_place():
    """The tensors of these tests are small, and would all be concatenated: here they are written in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_storage, "CONCATENATED_BYTES", 0)
        yield


# In place from the first token on, never, and from some point of the sequence on.
SMALLS = st.sampled_from([0, CONCATENATED_BYTES, 700])


def drive(pair, operations, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_storage, "CONCATENATED_BYTES", small)
        for operation in operations:
            pair.do(*operation)


class Pair:
    """Our layer and transformers', given the same operations; every answer of theirs must be the same."""

    def __init__(self, ours, theirs, heads, **options):
        self.ours, self.theirs, self.heads, self.rows = ours(**options), theirs(**options), heads, 2
        self.options = options
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def integers(self, seed, count):
        return torch.randint(self.rows, (count,), generator=torch.Generator().manual_seed(seed))

    def do(self, name, *arguments):
        getattr(self, name)(*arguments)
        self.compare()

    def update(self, count, mode):
        keys, values = (self.random(self.rows, self.heads, count, width) for width in (KEY, VALUE))
        sizes = self.theirs.get_mask_sizes(count)
        assert self.ours.get_mask_sizes(count) == sizes
        with MODES[mode]():
            got = self.ours.update(keys, values)
            want = self.theirs.update(keys, values)
        for mine, other in zip(got, want, strict=True):
            # Before 5.18 a recording window returned more than it told the mask.
            torch.testing.assert_close(mine, other[..., -sizes[0] :, :], rtol=0, atol=0)
        if getattr(self.ours, "latent_and_rope", None) is not None:
            torch.testing.assert_close(self.ours.latent_and_rope, torch.cat(got, dim=-1), rtol=0, atol=0)
        if hasattr(self.theirs, "update_indexer"):
            states = self.random(self.rows, count, INDEX)
            with MODES[mode]():
                assert torch.equal(self.ours.update_indexer(states), self.theirs.update_indexer(states))

    def crop(self, count):
        if not self.theirs.is_initialized:
            return self.ours.crop(-count)
        if not isinstance(self.theirs, DynamicSlidingWindowLayer):
            self.theirs.crop(-count)
            return self.ours.crop(-count)
        # Theirs counts below zero.
        count = min(count, self.theirs.get_seq_length())
        window = self.theirs.sliding_window - 1
        left = max(self.theirs.get_seq_length() - count, 0)
        held = 0 if self.theirs.keys is None else self.theirs.keys.shape[-2]
        if self.theirs.get_seq_length() > window and (
            not self.theirs.record_past or max(held - count, 0) < min(left, window)
        ):
            # Theirs raises too, or is left with less than a window and says nothing.
            before = self.ours.get_seq_length()
            with pytest.raises(RuntimeError, match="record"):
                self.ours.crop(-count)
            assert self.ours.get_seq_length() == before
        else:
            self.theirs.crop(-count)
            self.ours.crop(-count)

    def reorder(self, seed):
        for layer in (self.ours, self.theirs):
            layer.reorder_cache(self.integers(seed, self.rows))

    def repeat(self, times):
        if self.rows * times <= 6:
            for layer in (self.ours, self.theirs):
                layer.batch_repeat_interleave(times)
            self.rows *= times if self.theirs.get_seq_length() else 1

    def select(self, seed):
        chosen = self.integers(seed, 1 + seed % 3)
        for layer in (self.ours, self.theirs):
            layer.batch_select_indices(chosen)
        self.rows = len(chosen) if self.theirs.get_seq_length() else self.rows

    def record(self):
        for layer in (self.ours, self.theirs):
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def reset(self):
        self.ours.reset()
        recording = getattr(self.theirs, "record_past", False)
        # Reset in place, a dynamic layer of transformers before 5.18 kept its length.
        self.theirs = type(self.theirs)(**self.options)
        if recording:
            self.theirs.activate_past_recording()

    def compare(self):
        assert self.ours.get_seq_length() == self.theirs.get_seq_length()
        assert self.ours.get_max_length() == self.theirs.get_max_length()
        assert self.ours.is_initialized == self.theirs.is_initialized
        for query_length in (1, 4):
            assert self.ours.get_mask_sizes(query_length) == self.theirs.get_mask_sizes(query_length)
        for name in ("keys", "values", "indexer_keys"):
            mine, other = getattr(self.ours, name, None), getattr(self.theirs, name, None)
            if other is None or not other.numel():
                assert mine is None or not mine.numel()
            else:
                assert torch.equal(mine, other), name


@pytest.mark.parametrize("case", FULL.values(), ids=FULL)
@settings(max_examples=40, deadline=None)
@given(operations=st.lists(OPERATION, max_size=14), small=SMALLS)
def test_full_layers_equal_transformers(case, operations, small):
    drive(Pair(*case), operations, small)


@pytest.mark.parametrize("case", SLIDING.values(), ids=SLIDING)
@settings(max_examples=80, deadline=None)
@given(operations=st.lists(OPERATION, max_size=14), window=st.sampled_from([2, 3, 4, 7, 16]), small=SMALLS)
def test_sliding_layers_equal_transformers(case, operations, window, small):
    drive(Pair(*case, sliding_window=window), operations, small)


@pytest.mark.parametrize("case", SLIDING.values(), ids=SLIDING)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_sliding_layers_around_the_window(case, step):
    """Prompts of window - 1, window, window + 1 and 3 windows, then far beyond, recording or not."""
    window = 6
    for prompt in (window - 1, window, window + 1, 3 * window):
        for recording in (False, True):
            pair = Pair(*case, sliding_window=window)
            pair.do("update", prompt, "no_grad")
            if recording:
                pair.do("record")
            for _ in range(20):
                pair.do("update", step, "no_grad")
                if recording:
                    pair.do("crop", min(step - 1, 2))


def test_a_window_of_one_token_remembers_nothing():
    """transformers' layer keeps everything there; the mask sizes, and so ours, say nothing but the step itself."""
    layer = SlidingLayer(sliding_window=1)
    with torch.no_grad():
        for count in (1, 3, 1, 1):
            sizes = layer.get_mask_sizes(count)
            keys, values = torch.randn(2, HEADS, count, KEY), torch.randn(2, HEADS, count, VALUE)
            got = layer.update(keys, values)
            assert torch.equal(got[0], keys) and torch.equal(got[1], values)
            assert sizes == (count, layer.get_seq_length() - count)


def fill(layer, counts, heads=HEADS, dtype=torch.float32):
    """Update `layer` with steps of the given lengths; -> the data pointer of its storage after each."""
    pointers = []
    with torch.no_grad():
        for count in counts:
            layer.update(
                torch.randn(2, heads, count, KEY, dtype=dtype), torch.randn(2, heads, count, VALUE, dtype=dtype)
            )
            pointers.append([buffer.storage.data_ptr() for buffer in layer.store.buffers])
    return pointers


def moves(pointers):
    return sum(before != after for before, after in zip(pointers, pointers[1:], strict=False))


@pytest.mark.parametrize("layer, heads", [(GrowingLayer, HEADS), (LatentLayer, 1), (IndexedLatentLayer, 1)])
def test_growing_storage_moves_at_doublings_only(layer, heads):
    pointers = fill(layer(), [1] * 1000, heads)
    # 1 + 64 spare, then doubled: 65, 132, 266, 534, 1070.
    assert moves(pointers) == 4


def test_growing_storage_reserves_a_bounded_amount():
    layer = GrowingLayer()
    fill(layer, [5 * MAX_SPARE])
    assert layer.store.buffers[0].storage.shape[-2] == 6 * MAX_SPARE
    fill(layer, [1] * 10)
    assert layer.store.buffers[0].storage.shape[-2] == 6 * MAX_SPARE
    small = GrowingLayer()
    fill(small, [1])
    assert small.store.buffers[0].storage.shape[-2] == 1 + MIN_SPARE


def test_small_buffers_are_concatenated_and_large_ones_are_not(monkeypatch):
    """With 64 float32 channels and 2 x 3 rows, 128 KiB are 85 tokens."""
    monkeypatch.setattr(cache_storage, "CONCATENATED_BYTES", CONCATENATED_BYTES)
    layer, pointers = GrowingLayer(), []
    with torch.no_grad():
        for _ in range(300):
            layer.update(torch.randn(2, HEADS, 1, 64), torch.randn(2, HEADS, 1, 64))
            pointers.append([buffer.storage.data_ptr() for buffer in layer.store.buffers])
    assert moves(pointers[:85]) > 40 and moves(pointers[87:]) == 1


def test_beam_reordering_keeps_the_spare_room():
    layer = GrowingLayer()
    fill(layer, [100])
    for _ in range(50):
        layer.reorder_cache(torch.tensor([1, 1]))
        (after,) = fill(layer, [1])
        assert after == [buffer.storage.data_ptr() for buffer in layer.store.buffers]
    assert layer.store.buffers[0].storage.shape[-2] == 200


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize(
    "layer, heads", [(SlidingLayer, HEADS), (SlidingLatentLayer, 1), (QuantizedSlidingLayer, HEADS)]
)
def test_sliding_storage_is_bounded_and_rarely_moves(layer, heads, recording):
    window = 32
    layer = layer(sliding_window=window)
    if recording:
        layer.activate_past_recording()
    fill(layer, [10 * window], heads)
    layer.crop(0) if recording else None
    pointers = []
    for _ in range(10 * window):
        pointers += fill(layer, [1], heads)
        if recording:
            layer.crop(0)
        assert all(buffer.storage.shape[-2] <= 2 * window for buffer in layer.store.buffers)
    # A storage of 2w that starts with w - 1 takes w + 1 tokens.
    assert moves(pointers) <= 10


def test_latent_and_rope_share_one_tensor():
    layer = LatentLayer()
    fill(layer, [7, 1, 1], heads=1)
    whole = layer.latent_and_rope
    assert whole.shape == (2, 1, 9, KEY + VALUE)
    assert layer.keys.data_ptr() == whole.data_ptr() and layer.keys.shape == (2, 1, 9, KEY)
    assert layer.values.data_ptr() == whole[..., KEY:].data_ptr() and layer.values.shape == (2, 1, 9, VALUE)
    # As a key of c + r columns with its values in front, one row of memory per token.
    assert whole.stride()[-2:] == (KEY + VALUE, 1)


def test_latent_refuses_parts_that_cannot_share_a_tensor():
    with pytest.raises(ValueError, match="float64"):
        LatentLayer().update(torch.randn(2, 1, 3, KEY), torch.randn(2, 1, 3, VALUE, dtype=torch.float64))


@pytest.mark.parametrize("layer", [GrowingLayer, LatentLayer])
def test_states_of_another_shape_or_dtype_are_not_squeezed_in(layer):
    """In-place copies would broadcast or cast them silently; concatenation, as transformers does it, says so."""
    layer = layer()
    fill(layer, [3], heads=1)
    with torch.no_grad(), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layer.update(torch.randn(1, 1, 1, KEY), torch.randn(1, 1, 1, VALUE))
    fill(layer, [1], heads=1, dtype=torch.float64)
    assert layer.keys.dtype == torch.float64 and layer.get_seq_length() == 4


@pytest.mark.parametrize("count", [-1, -3])
def test_crop_says_which_sign_it_wants(count):
    for layer in (GrowingLayer(), SlidingLayer(sliding_window=4), IndexedLayer()):
        with pytest.raises(ValueError, match=rf"crop\({-count}\)"):
            layer.crop(-count)
        layer.crop(count)
        assert layer.get_seq_length() == 0


# -- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}], ids=["full", "sliding"])
def test_gradients_pass_through_a_cache_as_through_transformers(options):
    gradients = []
    classes = (SlidingLayer, DynamicSlidingWindowLayer) if options else (GrowingLayer, DynamicLayer)
    for layer_class in classes:
        torch.manual_seed(1)
        layer, loss = layer_class(**options), 0.0
        steps = [torch.randn(2, HEADS, count, KEY, requires_grad=True) for count in (5, 1, 2)]
        query = torch.randn(KEY, requires_grad=True)
        for states in steps:
            keys, values = layer.update(states, states * 2)
            loss = loss + ((keys @ query).softmax(-1).unsqueeze(-1) * values).square().sum()
        loss.backward()
        gradients.append([tensor.grad for tensor in (*steps, query)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_key_is_not_overwritten_before_its_backward():
    """Only the query learns: its backward needs the keys as they were, whatever is cached afterwards."""
    layer, query = GrowingLayer(), torch.randn(KEY, requires_grad=True)
    fill(layer, [4])
    with torch.enable_grad():
        keys, _ = layer.update(torch.randn(2, HEADS, 1, KEY), torch.randn(2, HEADS, 1, VALUE))
        loss = (keys @ query).square().sum()
    layer.crop(-2)
    fill(layer, [1, 1])
    layer.update(torch.randn(2, HEADS, 1, KEY), torch.randn(2, HEADS, 1, VALUE))
    loss.backward()
    assert torch.isfinite(query.grad).all()


def test_a_cache_filled_in_inference_mode_goes_on_outside():
    layer = GrowingLayer()
    with torch.inference_mode():
        keys, _ = layer.update(torch.randn(1, HEADS, 3, KEY), torch.randn(1, HEADS, 3, VALUE))
    fill(layer, [])
    with torch.no_grad():
        more, _ = layer.update(torch.randn(1, HEADS, 1, KEY), torch.randn(1, HEADS, 1, VALUE))
    assert torch.equal(more[..., :3, :], keys)


# -- moving, copying, assigning ------------------------------------------------------------------------------------

ALL = {
    **{name: (layer, heads, {}) for name, (layer, _, heads) in FULL.items()},
    **{name: (layer, heads, {"sliding_window": 6}) for name, (layer, _, heads) in SLIDING.items()},
    "quantized": (QuantizedGrowingLayer, HEADS, {}),
    "quantized_sliding": (QuantizedSlidingLayer, HEADS, {"sliding_window": 6}),
    "quantized_latent": (QuantizedLatentLayer, 1, {}),
    "quantized_indexed": (QuantizedIndexedLayer, HEADS, {}),
    "quantized_indexed_latent": (QuantizedIndexedLatentLayer, 1, {}),
}


def filled(case):
    layer, heads, options = case
    layer = layer(**options)
    fill(layer, [9, 1], heads)
    if hasattr(layer, "update_indexer"):
        with torch.no_grad():
            layer.update_indexer(torch.randn(2, 10, INDEX))
    return layer


def tensors_of(thing):
    """Every tensor reachable from a layer's attributes, storages in its buffers included."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from tensors_of(item)
    elif hasattr(thing, "__dict__"):
        yield from tensors_of(list(vars(thing).values()))


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_offloading_and_back_changes_nothing(case):
    stays = filled(case)
    travels = copy.deepcopy(stays)
    for _ in range(3):
        travels.offload()
        travels.prefetch()
        states = torch.randn(2, case[1], 1, KEY), torch.randn(2, case[1], 1, VALUE)
        with torch.no_grad():
            for ours, theirs in zip(travels.update(*states), stays.update(*states), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_every_tensor_travels(case, monkeypatch):
    """`offload` sends each stored tensor to the CPU, without its spare room, `prefetch` to the device of the layer."""
    layer = filled(case)
    stored = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(layer) if tensor.dim() > 1}
    sent, move = set(), torch.Tensor.to

    def spy(tensor, *arguments, **options):
        sent.add(tensor.untyped_storage().data_ptr())
        return move(tensor, *arguments, **options).clone()

    monkeypatch.setattr(torch.Tensor, "to", spy)
    layer.offload()
    monkeypatch.undo()
    assert stored and stored <= sent
    assert all(tensor.shape[-2] <= 10 for tensor in tensors_of(layer) if tensor.dim() > 1)
    layer.device = layer.indexer_device = torch.device("meta")
    layer.prefetch()
    assert {tensor.device.type for tensor in tensors_of(layer) if tensor.dim() > 1} == {"meta"}


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_a_deep_copy_goes_its_own_way(case):
    layer = filled(case)
    other = copy.deepcopy(layer)
    keys, values = layer.keys.clone(), layer.values.clone()
    fill(other, [1, 1], case[1])
    assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_keys_and_values_can_be_assigned(case):
    """As PEFT does when it moves a prefix to the devices of the layers."""
    layer = filled(case)
    keys, values = layer.keys.clone(), layer.values.clone()
    layer.keys = layer.keys.to("cpu", copy=True)
    layer.values = layer.values.to("cpu", copy=True)
    torch.testing.assert_close(layer.keys, keys)
    torch.testing.assert_close(layer.values, values)


# -- eight bits ----------------------------------------------------------------------------------------------------


def test_quantisation_is_off_by_half_a_level_at_most():
    states = torch.randn(2, HEADS, 11, KEY) * torch.logspace(-6, 6, 11).view(11, 1)
    states[0, 0, 0] = 0
    codes, scale = quantize(states)
    assert codes.dtype == torch.int8 and codes.abs().max() == 127
    error = (dequantize(codes, scale, states.dtype) - states).abs()
    assert (error <= 0.5001 * states.abs().amax(-1, keepdim=True) / 127).all()
    assert not error[0, 0, 0].any()


@pytest.mark.parametrize("case", [name for name in ALL if name.startswith("quantized")])
@settings(max_examples=25, deadline=None)
@given(operations=st.lists(OPERATION.filter(lambda operation: operation[-1] != "grad"), max_size=10), small=SMALLS)
def test_quantised_layers_equal_plain_ones_on_rounded_states(case, operations, small):
    """What they hold is what a plain layer holds of the states rounded one by one."""
    layer, heads, options = ALL[case]
    rounds_values = "latent" not in case

    class Rounding(DynamicSlidingWindowLayer if options else DynamicIndexedLayer):
        def update(self, keys, values):
            keys = dequantize(*quantize(keys), keys.dtype)
            values = dequantize(*quantize(values), values.dtype) if rounds_values else values
            return super().update(keys, values)

    pair = Pair(layer, Rounding, heads, **options)
    if not hasattr(layer, "update_indexer"):
        Rounding.update_indexer = property()
    drive(pair, operations, small)


@pytest.mark.parametrize("case", [name for name in ALL if name.startswith("quantized")])
def test_quantised_layers_refuse_gradients(case):
    layer, heads, options = ALL[case]
    keys = torch.randn(1, heads, 2, KEY, requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        layer(**options).update(keys, torch.randn(1, heads, 2, VALUE))


def test_eight_bits_take_the_bytes_they_promise():
    def bytes_per_token(layer, heads, key, value):
        with torch.no_grad():
            layer.update(*(torch.randn(1, heads, 10, width, dtype=torch.bfloat16) for width in (key, value)))
        tails = [buffer.tail() for buffer in layer.store.buffers]
        return sum(tail.numel() * tail.element_size() for tail in tails) / 10

    assert bytes_per_token(LatentLayer(), 1, 512, 64) == 1152
    assert bytes_per_token(QuantizedLatentLayer(), 1, 512, 64) == 512 + 2 * 64 + 4
    assert bytes_per_token(GrowingLayer(), 8, 128, 128) == 4096
    assert bytes_per_token(QuantizedGrowingLayer(), 8, 128, 128) == 2 * 8 * (128 + 4)
