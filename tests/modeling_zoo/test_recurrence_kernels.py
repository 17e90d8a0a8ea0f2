"""Recurrences by flash-linear-attention: what reaches its kernels, which it takes, and layers that stay one graph."""

import pytest
import references_recurrent as reference
import torch
from random_mixers import WIDTH, mixer_of, plain_cache, run

from modeling_zoo import ops_recurrence_fla
from modeling_zoo.ops_packing import packed_sequences
from modeling_zoo.ops_recurrence import delta_rule, linear_attention

GRANULARITIES = ("none", "head", "channel")
# (delta rule, granularity of the decay, one token) -> the name that the kernel's decay has.
KERNEL_KEYS = [(d, g, one) for d in (True, False) for g in GRANULARITIES for one in (True, False)]
DECAY_NAMES = {key: "gk" if key == (False, "channel", True) else "g" for key in KERNEL_KEYS}


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


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("delta", [True, False])
def test_the_call_of_a_kernel(monkeypatch, delta, length, granularity):
    """What reaches flash-linear-attention, played here by the token loop behind its signatures."""

    def play(q, k, v, *, scale, initial_state, output_final_state, beta=None, use_qk_l2norm_in_kernel=False, **decays):
        assert q.shape[2] == k.shape[2] == v.shape[2] and output_final_state
        decay = decays.pop(DECAY_NAMES[delta, granularity, length == 1], None)
        assert not decays and (decay is None) == (granularity == "none")
        options = {"delta": delta, "scale": scale, "normalize": use_qk_l2norm_in_kernel}
        return reference.matrix_recurrence(q, k, v, beta, decay, initial_state, **options)

    names = {key: "gk" if key == (False, "channel", True) else "g" for key in KERNEL_KEYS}
    kernels = {key[:2]: ((play, names[*key[:2], False]), (play, names[*key[:2], True])) for key in KERNEL_KEYS}
    monkeypatch.setattr(ops_recurrence_fla, "FLA_KERNELS", kernels)
    monkeypatch.setattr("modeling_zoo.ops_recurrence.can_run_kernel", lambda *_: True)
    *inputs, state = matrix_inputs(length, granularity, torch.float64)
    recurrence, options = (delta_rule, {"normalize": True}) if delta else (linear_attention, {})
    with torch.no_grad():
        output, end = recurrence(*inputs, state.clone(), **options)
    expected = reference.matrix_recurrence(*inputs, state, delta=delta, scale=7**-0.5, normalize=delta)
    # The decay crosses in float32.
    assert error(output, expected[0]) < 1e-6 and error(end, expected[1]) < 1e-6


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("delta", [True, False])
def test_the_call_of_a_kernel_for_packed_sequences(monkeypatch, delta, granularity):
    """End to end in one row with their cumulative lengths, as flash-linear-attention wants them."""

    def play(*, cu_seqlens, initial_state, output_final_state, scale, use_qk_l2norm_in_kernel=False, **inputs):
        assert initial_state is None and {len(states) for states in inputs.values()} == {1}
        query, key, value, beta, decay = (inputs.pop(name, None) for name in ("q", "k", "v", "beta", "g"))
        assert not inputs and cu_seqlens.tolist() == [0, 4, 5, 12, 19, 24]
        lengths = cu_seqlens.diff().tolist()
        parts = [[None] * 5 if x is None else x.split(lengths, dim=1) for x in (query, key, value, beta, decay)]
        options = {"delta": delta, "scale": scale, "normalize": use_qk_l2norm_in_kernel}
        ran = [reference.matrix_recurrence(*part, None, **options) for part in zip(*parts, strict=True)]
        return tuple(torch.cat(side, dim) for side, dim in zip(zip(*ran, strict=True), (1, 0), strict=True))

    monkeypatch.setattr(ops_recurrence_fla, "FLA_KERNELS", {(delta, granularity): ((play, "g"),) * 2})
    *inputs, _ = matrix_inputs(12, granularity, torch.float64)
    recurrence = delta_rule if delta else linear_attention
    packed = packed_sequences(
        torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]]), 2
    )
    expected = recurrence(*inputs, packed=packed)
    monkeypatch.setattr("modeling_zoo.ops_recurrence.can_run_kernel", lambda *_: True)
    for found, side in zip(recurrence(*inputs, packed=packed), expected, strict=True):
        # The decay crosses in float32.
        assert error(found, side) < 1e-6


def test_no_kernel_on_a_cpu(monkeypatch):
    monkeypatch.setattr(ops_recurrence_fla, "FLA_KERNELS", {"any": "kernel"})
    assert not ops_recurrence_fla.has_kernels(torch.device("cpu"))
    assert not ops_recurrence_fla.can_run_kernel(torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "dtype, width, taken",
    [
        (torch.bfloat16, 256, True),
        (torch.float16, 64, True),
        (torch.float32, 64, False),
        (torch.float64, 64, False),
        (torch.bfloat16, 257, False),
    ],
    ids=str,
)
def test_the_dtypes_and_widths_that_kernels_take(monkeypatch, dtype, width, taken):
    monkeypatch.setattr(ops_recurrence_fla, "has_kernels", lambda device: True)
    assert ops_recurrence_fla.can_run_kernel(torch.zeros(1, 2, 1, width, dtype=dtype)) == taken


def as_on_a_device(monkeypatch, kernels):
    """The question after the device is answered as on a GPU, with these kernels or without any."""
    monkeypatch.setattr(ops_recurrence_fla, "FLA_KERNELS", kernels)
    monkeypatch.setattr(ops_recurrence_fla, "has_kernels", lambda device: bool(ops_recurrence_fla.FLA_KERNELS))


def played_kernels(ran):
    """flash-linear-attention's kernels, which no graph may enter, played by the token loop."""

    def kernel(delta, granularity, one):
        name = DECAY_NAMES[delta, granularity, one]

        @torch.compiler.disable
        def play(q, k, v, *, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel=False, **more):
            ran.append(name)
            inputs = (q, k, v, more.get("beta"), more.get(name), initial_state)
            inputs = [None if x is None else x.float() for x in inputs]
            options = {"delta": delta, "scale": scale, "normalize": use_qk_l2norm_in_kernel}
            output, state = reference.matrix_recurrence(*inputs, **options)
            return output.to(q.dtype), state.float()

        return play, name

    return {key[:2]: (kernel(*key[:2], False), kernel(*key[:2], True)) for key in KERNEL_KEYS}


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(
    "name", ["gated_delta_net", "kimi_delta_attention", "mamba2", "lightning_attention", "gated_linear_attention"]
)
def test_a_layer_on_a_device_is_one_graph(monkeypatch, name, installed):
    """With flash-linear-attention and without it, for a prompt and for its tokens."""
    torch._dynamo.reset()
    ran = []
    as_on_a_device(monkeypatch, played_kernels(ran) if installed else {})
    mixer = mixer_of(name).bfloat16()
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    x = torch.randn(2, 6, WIDTH, dtype=torch.bfloat16)
    eager, kept = plain_cache(mixer), plain_cache(mixer)
    for part in x.split((4, 1, 1), dim=1):
        ran.clear()
        expected = run(mixer, part, eager).float()
        assert len(ran) == installed
        found = run(compiled, part, kept).float()
        assert len(ran) == 2 * installed
        assert (found - expected).norm() < 0.02 * expected.norm()
    state, other = (cache.layers[0].recurrent_states[0] for cache in (eager, kept))
    assert state.dtype == other.dtype == torch.float32 and (state - other).norm() < 0.02 * state.norm()
