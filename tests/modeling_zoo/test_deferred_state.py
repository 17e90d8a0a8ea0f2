"""States whose last writes wait beside them, against the float64 loop over tokens and against runs without a cache."""

import copy
import pickle

import pytest
import references_recurrent as reference
import torch
from random_mixers import VARIANTS, WIDTH, assert_equal, mixer_of, run, zoo_cache
from test_recurrences import GRANULARITIES, TOLERANCE, assert_no_less_accurate, error, matrix_inputs
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from description_zoo.measure import held_bytes
from modeling_zoo.ops_recurrence import delta_rule, linear_attention
from modeling_zoo.ops_recurrence_decode import SLOTS, DeferredState

# Two full sets of waiting writes and a part of a third.
LENGTH = 2 * SLOTS + 5
DEFERRING = [name for name in VARIANTS if getattr(mixer_of(name), "can_defer", False)]


def token(inputs, t):
    return [None if x is None else x[:, t : t + 1] for x in inputs]


@torch.no_grad()
def steps(recurrence, inputs, state, **options):
    """The recurrence one token at a time over a deferred state: outputs, the state behind them."""
    deferred = DeferredState(state.clone())
    outputs = [recurrence(*token(inputs, t), deferred, **options)[0] for t in range(inputs[2].shape[1])]
    deferred.flush()
    return torch.cat(outputs, dim=1), deferred.state


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("delta", [True, False])
def test_many_tokens(delta, granularity, dtype):
    """Decays down to e**-20 per token, heads that share keys, queries and keys apart and in one tensor."""
    query, key, value, beta, decay, state = matrix_inputs(LENGTH, granularity, dtype)
    recurrence, options = (delta_rule, {"normalize": True}) if delta else (linear_attention, {})
    exact = reference.matrix_recurrence(query, key, value, beta, decay, state, delta=delta, scale=0.3, **options)
    for pair in ((query, key), (torch.stack([query, key], dim=2), None)):
        found = steps(recurrence, (*pair, value, beta, decay), state, scale=0.3, **options)
        for ours, expected in zip(found, exact, strict=True):
            assert ours.dtype == dtype and error(ours, expected) < TOLERANCE[dtype]


def test_without_strengths_and_without_unit_length():
    query, key, value, _, decay, state = matrix_inputs(LENGTH, "head", torch.float64)
    ones = torch.ones(value.shape[:3], dtype=torch.float64)
    exact = reference.matrix_recurrence(query, key, value, ones, decay, state, delta=False, scale=7**-0.5)
    for ours, expected in zip(steps(linear_attention, (query, key, value, None, decay), state), exact, strict=True):
        assert error(ours, expected) < 1e-12
    inputs = query, key / 5, value, ones / 2, decay
    exact = reference.matrix_recurrence(*inputs, state, delta=True, scale=7**-0.5)
    for ours, expected in zip(steps(delta_rule, inputs, state), exact, strict=True):
        assert error(ours, expected) < 1e-12


def test_half_precision_is_rounded_once():
    """Inputs of bfloat16 beside a float32 state: as their values in float64, products not rounded in between."""
    *inputs, state = matrix_inputs(LENGTH, "head")
    inputs = [x.bfloat16() for x in inputs]
    for delta, recurrence in ((True, delta_rule), (False, linear_attention)):
        inputs[1] = inputs[1] / 4
        exact = reference.matrix_recurrence(*inputs, state, delta=delta, scale=0.3)
        for ours, expected in zip(steps(recurrence, inputs, state, scale=0.3), exact, strict=True):
            assert ours.dtype == torch.float32 and error(ours, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("strength", [0.02, 0.3, 1.6, 8.0])
@pytest.mark.parametrize("granularity", ["head", "channel"])
@torch.no_grad()
def test_no_less_accurate_than_transformers_steps(granularity, strength):
    theirs = torch_recurrent_gated_delta_rule if granularity == "head" else recurrent_kimi_delta_attention
    query, key, value = torch.randn(3, 1, 100, 4, 64)
    decay = -torch.rand((1, 100, 4) if granularity == "head" else (1, 100, 4, 64)) * strength
    beta, state = torch.rand(1, 100, 4), torch.randn(1, 4, 64, 64)
    inputs = query, key, value, beta, decay
    exact = reference.matrix_recurrence(*inputs, state, delta=True, scale=0.125, normalize=True)
    outputs, after = [], state
    for t in range(100):
        q, k, v, b, g = token(inputs, t)
        options = {"initial_state": after, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
        output, after = theirs(q, k, v, g=g, beta=b, **options)
        outputs.append(output)
    assert_no_less_accurate(steps(delta_rule, inputs, state, normalize=True), (torch.cat(outputs, dim=1), after), exact)


@torch.no_grad()
def test_no_less_accurate_than_transformers_state_space_step():
    x, time_step = torch.randn(1, 100, 4, 32), torch.rand(1, 100, 4)
    write, read = torch.randn(2, 1, 100, 4, 64)
    rates, state = -torch.rand(4), torch.randn(1, 4, 64, 32)
    inputs = read, write, x, time_step, time_step * rates
    exact = reference.matrix_recurrence(
        read, write, x, time_step, time_step.double() * rates.double(), state, delta=False, scale=1.0
    )
    their_state, outputs = state.transpose(2, 3).contiguous(), []
    for t in range(100):
        given = x[:, t], time_step[:, t, :, None].expand(1, 4, 32), rates[:, None, None].expand(4, 32, 64)
        skip = torch.zeros(4, 32)
        outputs.append(mamba2_selective_state_update(their_state, *given, write[:, t], read[:, t], skip)[:, None])
    theirs = torch.cat(outputs, dim=1).view_as(x), their_state.transpose(2, 3)
    assert_no_less_accurate(steps(linear_attention, inputs, state, scale=1.0), theirs, exact)


@torch.no_grad()
def test_the_state_is_not_read_with_subnormal_numbers():
    """Whatever the decay; it would be several times slower."""
    for strength in (0.5, 6.0, 9.0, 30.0):
        query, key, value, beta, _, state = matrix_inputs(SLOTS - 1, "head", key_heads=6)
        deferred = DeferredState(state)
        for t in range(SLOTS - 1):
            decay = torch.full((2, 1, 6), -strength)
            delta_rule(*token((query, key, value, beta), t), decay, deferred, normalize=True)
            small = deferred.decayed.abs() < torch.finfo(torch.float32).tiny
            assert not (small & (deferred.decayed != 0)).any()
        deferred.flush()
        assert deferred.state.isfinite().all()


# -- in a cache ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=DEFERRING)
def mixer(request):
    return mixer_of(request.param)


def waiting(cache):
    return {index: deferred.count for index, deferred in cache.layers[0].deferred.items()}


def decode(mixer, x, cache):
    return torch.cat([run(mixer, part, cache) for part in x.split(1, dim=1)], dim=1)


@pytest.mark.sampled(3)
def test_decoding_lets_writes_wait(mixer):
    x, cache = torch.randn(3, 4 + LENGTH, WIDTH), zoo_cache(mixer)
    prompt = run(mixer, x[:, :4], cache)
    assert waiting(cache) == {}
    state = cache.layers[0].recurrent_states[0]
    assert_equal(torch.cat([prompt, decode(mixer, x[:, 4:], cache)], dim=1), run(mixer, x))
    assert waiting(cache) == {0: LENGTH % SLOTS}
    # Whoever asks gets a complete state, in the tensor it always was in.
    whole = zoo_cache(mixer)
    run(mixer, x, whole)
    found = cache.layers[0].recurrent_states[0]
    assert found is state and waiting(cache) == {0: 0}
    assert_equal(found, whole.layers[0].recurrent_states[0])


def picked(order):
    return lambda cache: cache.reorder_cache(torch.tensor(order))


def selected(order):
    return lambda cache: cache.batch_select_indices(torch.tensor(order))


# What is done to a cache of 3 rows in the midst of decoding, and the rows it then holds.
INTERRUPTIONS = {
    "reordered": (picked([2, 0, 2]), [2, 0, 2]),
    "selected": (selected([2, 0]), [2, 0]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "copied": (copy.deepcopy, [0, 1, 2]),
    "filed": (lambda cache: pickle.loads(pickle.dumps(cache)), [0, 1, 2]),
    "looked at": (lambda cache: cache.layers[0].recurrent_states[0].sum(), [0, 1, 2]),
    "offloaded": (lambda cache: (cache.layers[0].offload(), cache.layers[0].prefetch()), [0, 1, 2]),
    "recorded": (lambda cache: cache.activate_past_recording(), [0, 1, 2]),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_a_cache_may_be_changed_while_writes_wait(mixer, interruption):
    change, rows = INTERRUPTIONS[interruption]
    x, cache = torch.randn(3, 2 * SLOTS, WIDTH), zoo_cache(mixer)
    run(mixer, x[:, :3], cache)
    decode(mixer, x[:, 3 : SLOTS + 6], cache)
    assert waiting(cache) == {0: 3}
    changed = change(cache)
    cache = changed if isinstance(changed, type(cache)) else cache
    assert_equal(decode(mixer, x[rows, SLOTS + 6 :], cache), run(mixer, x[rows])[:, SLOTS + 6 :])


@pytest.mark.sampled(3)
def test_a_copy_holds_complete_states_and_nothing_beside_them(mixer):
    x, cache = torch.randn(1, 9, WIDTH), zoo_cache(mixer)
    run(mixer, x[:, :5], cache)
    prompt_alone = held_bytes(copy.deepcopy(cache.layers[0]))
    decode(mixer, x[:, 5:], cache)
    twin = copy.deepcopy(cache)
    assert held_bytes(twin.layers[0]) == prompt_alone
    before = twin.layers[0].recurrent_states[0].clone()
    decode(mixer, x[:, 5:], cache)
    assert torch.equal(twin.layers[0].recurrent_states[0], before)


@pytest.mark.sampled(3)
def test_many_tokens_after_single_ones(mixer):
    x, cache = torch.randn(2, 40, WIDTH), zoo_cache(mixer)
    parts = [run(mixer, x[:, :2], cache), decode(mixer, x[:, 2:9], cache), run(mixer, x[:, 9:14], cache)]
    parts += [decode(mixer, x[:, 14:35], cache), run(mixer, x[:, 35:], cache)]
    assert_equal(torch.cat(parts, dim=1), run(mixer, x))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("removed", [1, 3, 6])
def test_rollback_over_tokens_of_which_some_waited(mixer, removed):
    """Recording starts while writes wait; what was taken back leaves no trace, and decoding goes on."""
    x, cache = torch.randn(2, SLOTS + 12, WIDTH), zoo_cache(mixer)
    run(mixer, x[:, :2], cache)
    decode(mixer, x[:, 2 : SLOTS + 4], cache)
    cache.activate_past_recording()
    run(mixer, x[:, SLOTS + 4 : SLOTS + 8], cache)
    decode(mixer, x[:, SLOTS + 8 : SLOTS + 10], cache)
    cache.layers[0].crop(-removed)
    kept, others = x[:, : SLOTS + 10 - removed], torch.randn(2, SLOTS + 3, WIDTH)
    assert_equal(decode(mixer, others, cache), run(mixer, torch.cat([kept, others], 1))[:, -others.shape[1] :])


@pytest.mark.sampled(3)
def test_gradients_and_other_sequences_after_single_tokens(mixer):
    x, cache = torch.randn(2, 9, WIDTH), zoo_cache(mixer)
    run(mixer, x[:, :4], cache)
    decode(mixer, x[:, 4:8], cache)
    with torch.enable_grad():
        output = mixer(x[:, 8:], past_key_values=copy.deepcopy(cache))[0]
        assert output.requires_grad
    assert_equal(output.detach(), run(mixer, x)[:, 8:])
    cache.layers[0].reset()
    assert_equal(torch.cat([run(mixer, x[:, :3], cache), decode(mixer, x[:, 3:], cache)], 1), run(mixer, x))


@pytest.mark.sampled(3)
def test_inside_and_outside_of_inference_mode(mixer):
    """Steps in either over one state; one made in inference mode is completed outside of it."""
    x, cache = torch.randn(2, 3 * SLOTS, WIDTH), zoo_cache(mixer)
    parts = [run(mixer, x[:, :3], cache), decode(mixer, x[:, 3:9], cache)]
    with torch.inference_mode():
        parts.append(decode(mixer, x[:, 9:36], cache).clone())
        enclosed = zoo_cache(mixer)
        run(mixer, x[:, :3], enclosed)
        decode(mixer, x[:, 3:], enclosed)
    parts.append(decode(mixer, x[:, 36:], cache))
    assert_equal(torch.cat(parts, dim=1), run(mixer, x))
    assert_equal(enclosed.layers[0].recurrent_states[0].clone(), cache.layers[0].recurrent_states[0])


def test_compiled_steps_do_not_wait():
    """A count of waiting writes would be a graph for each."""
    torch._dynamo.reset()
    mixer = mixer_of("gated_delta_net")
    x, cache = torch.randn(2, 16, WIDTH), zoo_cache(mixer)
    step = torch.compile(mixer, backend="eager", fullgraph=True)
    parts = [run(mixer, x[:, :4], cache), decode(mixer, x[:, 4:8], cache)]
    for t in range(8, 12):
        parts.append(run(step, x[:, t : t + 1], cache, position_ids=torch.tensor([[t]])))
    assert waiting(cache) == {0: 0}
    parts.append(decode(mixer, x[:, 12:], cache))
    assert_equal(torch.cat(parts, dim=1), run(mixer, x))


@pytest.mark.sampled(3)
def test_padding_before_single_tokens(mixer):
    """Left padding in the prompt, a mask beside every token."""
    x, cache = torch.randn(2, 30, WIDTH), zoo_cache(mixer)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :5] = 0
    run(mixer, x[:, :8], cache, attention_mask=mask[:, :8])
    found = [run(mixer, x[:, t : t + 1], cache, attention_mask=mask[:, : t + 1]) for t in range(8, 30)]
    found = torch.cat(found, dim=1)
    assert_equal(found[:1], run(mixer, x[:1, 5:])[:, 3:])
    assert_equal(found[1:], run(mixer, x[1:])[:, 8:])
