"""What every recurrent mixer promises: padding, chunks, packing, beams, rollback, gradients."""

import copy

import pytest
import torch
from random_mixers import TOKENS, VARIANTS, WIDTH, assert_equal, mixer_of, plain_cache, run, zoo_cache
from samples import every

from configuration_zoo.fields_linear import LINEAR_MECHANISMS
from modeling_zoo.recurrent_hybrid import LINEAR_MIXERS

CACHES = [plain_cache, zoo_cache]


@pytest.fixture(params=VARIANTS)
def mixer(request):
    return mixer_of(request.param)


def test_every_mechanism_is_here():
    assert {mechanism for mechanism, _ in VARIANTS.values()} == set(LINEAR_MECHANISMS) == set(LINEAR_MIXERS)


def test_the_future_does_not_change_the_past(mixer):
    x = torch.randn(2, TOKENS, WIDTH)
    changed = x.clone()
    changed[:, 11:] = torch.randn(2, TOKENS - 11, WIDTH)
    assert_equal(run(mixer, changed)[:, :11], run(mixer, x)[:, :11])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("new_cache", CACHES)
@pytest.mark.parametrize("cuts", [range(1, TOKENS), (1, 3, 4, 9, 10), (8,)], ids=str)
def test_any_split_over_a_cache(mixer, new_cache, cuts):
    x, cache = torch.randn(2, TOKENS, WIDTH), new_cache(mixer)
    parts = torch.tensor_split(x, tuple(cuts), dim=1)
    assert_equal(torch.cat([run(mixer, part, cache) for part in parts], 1), run(mixer, x))


MASKS = {
    "left": [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]],
    "holes": [[1, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1, 1, 1]],
    "nothing": [[0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("new_cache", CACHES)
@pytest.mark.parametrize("first", every(2, MASKS))
@pytest.mark.parametrize("second", every(3, [None, *MASKS]))
def test_padding_anywhere(mixer, new_cache, first, second):
    """A padded prefill, a second padded forward over its cache, and a single token: as if there were no padding."""
    masks = [torch.tensor(MASKS[name]) for name in (first, second) if name is not None]
    masks.append(torch.ones(3, 1, dtype=torch.long))
    positions = (torch.cat(masks, 1).cumsum(1) - 1).clamp(min=0).split([mask.shape[1] for mask in masks], dim=1)
    cache, inputs, outputs = new_cache(mixer), [], []
    for index, mask in enumerate(masks):
        inputs.append(torch.randn(3, mask.shape[1], WIDTH))
        given = {"attention_mask": torch.cat(masks[: index + 1], 1)} if mask.shape[1] > 1 else {}
        outputs.append(run(mixer, inputs[-1], cache, position_ids=positions[index], **given))
    inputs, outputs, mask = torch.cat(inputs, 1), torch.cat(outputs, 1), torch.cat(masks, 1).bool()
    for row in range(3):
        expected = run(mixer, inputs[row][mask[row]][None])[0]
        assert_equal(outputs[row][mask[row]], expected)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("described_by", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_packed_sequences(mixer, described_by):
    """Several sequences in a row are as many rows, whatever says so; the cache goes on with the last."""
    lengths = (5, 1, 4, 9)
    x, cache = torch.randn(1, sum(lengths), WIDTH), plain_cache(mixer)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    given = {
        "position_ids": {"position_ids": positions},
        "cu_seq_lens_q": {"cu_seq_lens_q": ends.int(), "position_ids": positions},
        "seq_idx": {"seq_idx": torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]},
    }[described_by]
    output = run(mixer, x, cache, **given)
    expected = torch.cat([run(mixer, part) for part in x.split(lengths, dim=1)], dim=1)
    assert_equal(output, expected)
    step = torch.randn(1, 1, WIDTH)
    continued = run(mixer, torch.cat([x[:, -9:], step], 1))[:, -1:]
    assert_equal(run(mixer, step, cache, position_ids=torch.tensor([[9]])), continued)


def test_packed_rows_of_a_batch(mixer):
    x = torch.randn(2, 8, WIDTH)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]])
    output = run(mixer, x, position_ids=positions)
    for row, cut in ((0, 5), (1, 2)):
        parts = [run(mixer, part) for part in x[row : row + 1].tensor_split((cut,), dim=1)]
        assert_equal(output[row : row + 1], torch.cat(parts, 1))


def test_packed_sequences_do_not_continue_a_cache():
    mixer, x = mixer_of("gated_delta_net"), torch.randn(1, 6, WIDTH)
    cache = plain_cache(mixer)
    run(mixer, x, cache)
    with pytest.raises(ValueError, match="cannot continue a cache"):
        run(mixer, x, cache, cu_seq_lens_q=torch.tensor([0, 2, 6]))


@pytest.mark.parametrize("new_cache", CACHES)
def test_beams_reorder(mixer, new_cache):
    x, cache, order = torch.randn(3, 7, WIDTH), new_cache(mixer), torch.tensor([2, 0, 2])
    run(mixer, x, cache)
    cache.reorder_cache(order)
    step = torch.randn(3, 1, WIDTH)
    assert_equal(run(mixer, step, cache), run(mixer, torch.cat([x[order], step], 1))[:, -1:])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("removed", [1, 4, 5, 7])
def test_rollback(mixer, removed):
    """Tokens taken back from a recording cache leave no trace: 3 + 5 tokens, then `removed` fewer, then others."""
    x, cache = torch.randn(2, 8, WIDTH), zoo_cache(mixer)
    cache.activate_past_recording()
    run(mixer, x[:, :3], cache)
    run(mixer, x[:, 3:], cache)
    cache.layers[0].crop(-removed)
    others = torch.randn(2, 4, WIDTH)
    expected = run(mixer, torch.cat([x[:, : 8 - removed], others], 1))[:, -4:]
    assert_equal(run(mixer, others, cache), expected)


def test_padding_between_tokens_cannot_be_recorded():
    mixer = mixer_of("gated_delta_net")
    cache = zoo_cache(mixer)
    cache.activate_past_recording()
    with pytest.raises(ValueError, match="pad on the left"):
        run(mixer, torch.randn(1, 4, WIDTH), cache, attention_mask=torch.tensor([[1, 0, 1, 1]]))


def test_gradients_reach_everything(mixer):
    x = torch.randn(2, 40, WIDTH, requires_grad=True)
    mixer(x)[0].square().sum().backward()
    for name, tensor in [("input", x), *mixer.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0 and tensor.grad.isfinite().all(), name


@pytest.mark.sampled(3)
@pytest.mark.parametrize("new_cache", CACHES)
def test_gradients_flow_through_a_cache(mixer, new_cache):
    """Two forwards over a cache give the gradient of one."""
    x = torch.randn(2, 9, WIDTH)
    gradients = []
    for cuts in ((), (4, 5)):
        leaf, cache = x.clone().requires_grad_(), new_cache(mixer)
        output = torch.cat([mixer(part, past_key_values=cache)[0] for part in leaf.tensor_split(cuts, dim=1)], 1)
        output.square().sum().backward()
        gradients.append(leaf.grad)
    assert_equal(*gradients[::-1])


def test_bfloat16(mixer):
    x = torch.randn(2, TOKENS, WIDTH)
    expected, cache = run(mixer, x), plain_cache(mixer)
    low = copy.deepcopy(mixer).to(torch.bfloat16)
    parts = [run(low, part.bfloat16(), cache) for part in x.tensor_split((9, 10), dim=1)]
    output = torch.cat(parts, 1)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.05 * expected.norm()
    state = cache.layers[0].recurrent_states[0]
    assert state is None or state.dtype == torch.float32


@pytest.mark.parametrize("mixer", every(8, VARIANTS), indirect=True)
def test_steps_compile_into_one_graph(mixer):
    """Of a single token over a cache: nothing there may look at a value."""
    torch._dynamo.reset()
    x, eager, compiled = torch.randn(2, 6, WIDTH), plain_cache(mixer), plain_cache(mixer)
    step = torch.compile(mixer, backend="eager", fullgraph=True)
    run(mixer, x[:, :4], eager)
    run(mixer, x[:, :4], compiled)
    for t in (4, 5):
        given = {"position_ids": torch.tensor([[t]])}
        assert_equal(run(step, x[:, t : t + 1], compiled, **given), run(mixer, x[:, t : t + 1], eager, **given))
