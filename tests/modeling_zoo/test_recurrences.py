"""The recurrences against a float64 loop over tokens, and against the errors of transformers' own functions."""

import pytest
import references_recurrent as reference
import torch
import torch.nn.functional as F
from samples import every
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from modeling_zoo.ops_convolution import causal_convolution, convolve_window
from modeling_zoo.ops_recurrence import delta_rule, linear_attention
from modeling_zoo.ops_recurrence_product import delta_product
from modeling_zoo.ops_state_space import diagonal_scan, gated_linear_unit, selective_scan, state_space_duality

# Around one chunk of 32, and past a segment of 512.
LENGTHS = (1, 5, 32, 77, 530)
# Largest error relative to the largest value.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 2e-13}
GRANULARITIES = ("none", "head", "channel")


def error(ours, exact):
    return ((ours.double() - exact).abs().max() / exact.abs().max()).item()


def matrix_inputs(length, granularity, dtype=torch.float32, heads=6, key_heads=3, width=7, value_width=5, batch=2):
    """query, key, value, beta in (0, 2), log decay from none to e**-20 per token, state."""
    query, key = torch.randn(2, batch, length, key_heads, width, dtype=dtype)
    value = torch.randn(batch, length, heads, value_width, dtype=dtype)
    beta = torch.rand(batch, length, heads, dtype=dtype) * 2
    shape = {"none": None, "head": (heads,), "channel": (heads, width)}[granularity]
    decay = None if shape is None else -torch.rand(batch, length, *shape, dtype=dtype).pow(4) * 20
    return query, key, value, beta, decay, torch.randn(batch, heads, width, value_width, dtype=dtype)


def copy(tensor):
    return None if tensor is None else tensor.clone()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("length", every(2, LENGTHS))
@pytest.mark.parametrize("grad", [False, True])
def test_delta_rule(length, granularity, dtype, grad):
    *inputs, state = matrix_inputs(length, granularity, dtype)
    for start in (None, state):
        with torch.set_grad_enabled(grad):
            output, end = delta_rule(*inputs, copy(start), normalize=True, scale=0.3)
        exact, exact_end = reference.matrix_recurrence(*inputs, start, delta=True, scale=0.3, normalize=True)
        assert error(output, exact) < TOLERANCE[dtype] and error(end, exact_end) < TOLERANCE[dtype]
        assert output.dtype == end.dtype == dtype


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("writes", [1, 3])
@pytest.mark.parametrize("length", [1, 77])
def test_a_product_of_householder_matrices(length, writes, granularity):
    query, _, _, _, decay, state = matrix_inputs(length, granularity)
    key, value = torch.randn(2, length, writes, 3, 7), torch.randn(2, length, writes, 6, 5)
    beta = torch.rand(2, length, writes, 6) * 2
    for start in (None, state):
        inputs = (query, key, value, beta, decay)
        output, end = delta_product(*inputs, copy(start), normalize=True, scale=0.3)
        exact, exact_end = reference.householder_product(*inputs, start, scale=0.3)
        assert error(output, exact) < TOLERANCE[torch.float32] and error(end, exact_end) < TOLERANCE[torch.float32]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("length", every(2, LENGTHS))
@pytest.mark.parametrize("grad", [False, True])
def test_linear_attention(length, granularity, dtype, grad):
    query, key, value, beta, decay, state = matrix_inputs(length, granularity, dtype)
    for start, strength in ((None, None), (state, beta)):
        inputs = (query, key, value, strength, decay)
        with torch.set_grad_enabled(grad):
            output, end = linear_attention(*inputs, copy(start))
        exact, exact_end = reference.matrix_recurrence(*inputs, start, delta=False, scale=7**-0.5)
        assert error(output, exact) < TOLERANCE[dtype] and error(end, exact_end) < TOLERANCE[dtype]


def test_keys_that_are_not_normalised():
    *inputs, state = matrix_inputs(70, "head", torch.float64)
    inputs[1] = inputs[1] / 5
    exact, exact_end = reference.matrix_recurrence(*inputs, state, delta=True, scale=7**-0.5)
    output, end = delta_rule(*inputs, state)
    assert error(output, exact) < 1e-12 and error(end, exact_end) < 1e-12


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("recurrence", [delta_rule, linear_attention])
def test_split_anywhere(recurrence, granularity):
    """Two forwards, the second of one token or of many, give what one gives."""
    *inputs, state = matrix_inputs(41, granularity)
    with torch.no_grad():
        whole, end = recurrence(*inputs, state.clone())
        for cut in (1, 7, 32, 40):
            first, middle = recurrence(*[None if x is None else x[:, :cut] for x in inputs], state.clone())
            second, last = recurrence(*[None if x is None else x[:, cut:] for x in inputs], middle)
            assert error(torch.cat([first, second], 1), whole.double()) < 4e-6
            assert error(last, end.double()) < 4e-6


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("length", [1, 9, 40])
@pytest.mark.parametrize("delta", [True, False])
def test_gradients(delta, length, granularity):
    """Of every input, the initial state included, against autograd through the token loop."""
    inputs = matrix_inputs(length, granularity, torch.float64, batch=1)
    leaves = [None if x is None else x.requires_grad_() for x in inputs]
    recurrence = delta_rule if delta else linear_attention
    ours = recurrence(*leaves, scale=0.5)
    exact = reference.matrix_recurrence(*leaves, delta=delta, scale=0.5)
    weights = [torch.randn_like(x) for x in exact]
    given = [x for x in leaves if x is not None]
    gradients, expected = (
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(side, weights, strict=True)), given)
        for side in (ours, exact)
    )
    for name, gradient, exact_gradient in zip("qkvbgs", gradients, expected, strict=False):
        assert error(gradient, exact_gradient) < 1e-9, name


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("recurrence", [delta_rule, linear_attention])
def test_one_token_writes_into_its_state_without_gradients_alone(recurrence, granularity):
    *inputs, state = matrix_inputs(1, granularity)
    before = state.clone()
    _, end = recurrence(*inputs, state)
    assert torch.equal(state, before) and end.data_ptr() != state.data_ptr()
    with torch.no_grad():
        _, end = recurrence(*inputs, state)
    assert end is state and not torch.equal(state, before)


@pytest.mark.parametrize("recurrence", [delta_rule, linear_attention])
def test_a_decay_of_zero_and_no_write_leave_the_state_alone(recurrence):
    """What a mixer relies on where a row has no token."""
    query, key, value, beta, decay, state = matrix_inputs(50, "channel")
    valid = torch.rand(2, 50) < 0.6
    beta, decay = beta * valid[..., None], decay * valid[..., None, None]
    _, end = recurrence(query, key, value, beta, decay, state.clone())
    for row in range(2):
        inputs = [x[row : row + 1, valid[row]] for x in (query, key, value, beta, decay)]
        _, alone = recurrence(*inputs, state[row : row + 1])
        assert error(end[row : row + 1], alone.double()) < 4e-6


def root_mean_square(ours, exact):
    return ((ours.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


def assert_no_less_accurate(ours, theirs, exact):
    """Outputs and states: errors up to theirs, or down at the rounding of float32 itself."""
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        bound = max(1.1 * root_mean_square(other, expected), 2.5 * torch.finfo(torch.float32).eps)
        assert root_mean_square(mine, expected) <= bound


@pytest.mark.sampled(3)
@pytest.mark.parametrize("strength", [0.02, 0.3, 1.6, 8.0])
@pytest.mark.parametrize("granularity", ["head", "channel"])
@torch.no_grad()
def test_no_less_accurate_than_transformers_delta_rules(granularity, strength):
    theirs = torch_chunk_gated_delta_rule if granularity == "head" else chunk_kimi_delta_attention
    query, key, value = torch.randn(3, 1, 256, 4, 64)
    shape = (1, 256, 4) if granularity == "head" else (1, 256, 4, 64)
    decay, beta = -F.softplus(torch.randn(shape)) * strength, torch.rand(1, 256, 4)
    exact = reference.matrix_recurrence(query, key, value, beta, decay, None, delta=True, scale=0.125, normalize=True)
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "initial_state": None}
    ours = delta_rule(query, key, value, beta, decay, normalize=True)
    assert_no_less_accurate(ours, theirs(query, key, value, decay, beta, **options), exact)


@pytest.mark.parametrize("strength", [0.02, 1.6, 8.0])
@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_no_less_accurate_than_transformers_state_space_duality(groups, strength):
    inputs, time_step = torch.randn(1, 300, 4, 32), F.softplus(torch.randn(1, 300, 4))
    write, read = torch.randn(2, 1, 300, groups, 64)
    rates, skip = -torch.rand(4) * strength, torch.randn(4)
    decay = time_step.double() * rates.double()
    exact, end = reference.matrix_recurrence(read, write, inputs, time_step, decay, None, delta=False, scale=1.0)
    exact = exact + inputs * skip[:, None]
    output, state = mamba2_chunk_scan(inputs, time_step, rates, write, read, 256, D=skip, return_final_states=True)
    ours = state_space_duality(inputs, time_step, rates, write, read, skip)
    assert_no_less_accurate(ours, (output, state.transpose(-1, -2)), (exact, end))


@torch.no_grad()
def test_strong_decays_make_no_subnormal_numbers():
    """They are no error, but cost a CPU a factor of four."""
    from modeling_zoo.ops_recurrence_chunked import decayed_scores

    rows, key = torch.randn(2, 3, 32, 2, 16), torch.randn(2, 3, 32, 16)
    for shape in ((2, 3, 32), (2, 3, 32, 16)):
        for part in decayed_scores(rows, key, -torch.rand(shape) * 12):
            assert not ((part.abs() < torch.finfo(torch.float32).tiny) & (part != 0)).any()


# -- diagonal recurrences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 65])
def test_diagonal_scan(length):
    decay, write = torch.rand(2, length, 3, dtype=torch.float64), torch.randn(2, length, 3, dtype=torch.float64)
    state = torch.randn(2, 3, dtype=torch.float64)
    states = diagonal_scan(decay, write, state)
    for t in range(length):
        state = decay[:, t] * state + write[:, t]
        assert error(states[:, t], state) < 1e-13


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 6, 75])
@pytest.mark.parametrize("grad", [False, True])
def test_selective_scan(length, dtype, grad, monkeypatch):
    # Segments of 8 tokens.
    monkeypatch.setattr("modeling_zoo.ops_state_space.SCAN_BUDGET", 8 * 2 * 7 * 4)
    inputs, time_step = torch.randn(2, length, 7, dtype=dtype), torch.rand(2, length, 7, dtype=dtype)
    write, read = torch.randn(2, 2, length, 4, dtype=dtype)
    rates, skip = -torch.rand(7, 4, dtype=dtype) * 3, torch.randn(7, dtype=dtype)
    for start in (None, torch.randn(2, 4, 7, dtype=dtype)):
        arguments = (inputs, time_step, rates, write, read, skip)
        with torch.set_grad_enabled(grad):
            output, end = selective_scan(*arguments, copy(start))
        exact, exact_end = reference.selective_scan(*arguments, start)
        assert error(output, exact) < TOLERANCE[dtype] and error(end, exact_end) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 6, 75])
def test_gated_linear_unit(length, dtype):
    inputs, decay = torch.randn(2, length, 7, dtype=dtype), -torch.rand(2, length, 7, dtype=dtype)
    for start in (None, torch.randn(2, 7, dtype=dtype)):
        output, end = gated_linear_unit(inputs, decay, start)
        exact, exact_end = reference.gated_linear_unit(inputs, decay, start)
        assert error(output, exact) < TOLERANCE[dtype] and error(end, exact_end) < TOLERANCE[dtype]


def test_gated_linear_unit_starts_anew_and_skips():
    inputs, decay = torch.randn(1, 9, 4), -torch.rand(1, 9, 4)
    first = torch.tensor([[1, 0, 0, 0, 1, 0, 0, 0, 0]]).bool()
    valid = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1, 1]]).bool()
    state = torch.randn(1, 4)
    output, _ = gated_linear_unit(inputs, decay, state, first, valid)
    expected = state[0]
    for t in range(9):
        if valid[0, t]:
            a = decay[0, t].exp()
            expected = inputs[0, t] if first[0, t] else a * expected + (1 - a * a).sqrt() * inputs[0, t]
        assert torch.allclose(output[0, t], expected, atol=1e-6)


def test_the_gradient_of_the_gated_unit_is_bounded():
    decay = torch.zeros(1, 5, 2, requires_grad=True)
    gated_linear_unit(torch.ones(1, 5, 2), decay)[0].sum().backward()
    assert decay.grad.isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 20])
def test_causal_convolution(length, taps, grad):
    inputs, weight, bias = torch.randn(2, length, 6), torch.randn(6, taps), torch.randn(6)
    for window in (None, torch.randn(2, 6, taps)):
        for offset in (None, bias):
            with torch.set_grad_enabled(grad):
                output = causal_convolution(inputs, weight, offset, window)
            assert error(output, reference.causal_convolution(inputs, weight, offset, window)) < 1e-6


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
def test_the_convolution_of_one_token(taps):
    weight, bias = torch.randn(6, taps), torch.randn(6)
    inputs, before = torch.randn(2, 1, 6), torch.randn(2, 6, taps)
    window = torch.cat([before[..., 1:], inputs.transpose(1, 2)], dim=-1)
    for offset in (None, bias):
        expected = reference.causal_convolution(inputs, weight, offset, before)
        assert error(convolve_window(window, weight, offset), expected) < 1e-6
