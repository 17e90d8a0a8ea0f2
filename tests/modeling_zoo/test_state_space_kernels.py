"""Mixers by causal-conv1d and mamba-ssm, played by token loops behind their signatures, and who may call them."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from random_mixers import WIDTH, mix, mixer_of, plain_cache, run
from torch._subclasses.fake_tensor import FakeTensorMode

from modeling_zoo import ops_state_space_kernels as kernels

# -- the libraries -----------------------------------------------------------------------------------------------------


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    """x `[B, C, L]`, conv_state `[B, C, K]`, which ends with x afterwards."""
    assert activation in (None, "silu") and weight.dim() == 2
    line = torch.cat([conv_state, x], dim=-1)
    conv_state.copy_(line[..., -conv_state.shape[-1] :])
    output = F.conv1d(line, weight.unsqueeze(1), bias, groups=x.shape[1])[..., -x.shape[-1] :]
    return output if activation is None else F.silu(output)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    assert activation in (None, "silu") and seq_idx is initial_states is None
    length, taps = x.shape[-1], weight.shape[-1]
    output = F.conv1d(x, weight.unsqueeze(1), bias, padding=taps - 1, groups=x.shape[1])[..., :length]
    return output if activation is None else F.silu(output)


def after_token(state, x, dt, A, B, C, D):
    """(output, state after it): state `[B, (H,) P, N]`; x, dt `[B, (H,) P]`; A `[(H,) P, N]`; B, C `[B, (G,) N]`; D
    `[(H,) P]`."""
    assert x.shape == dt.shape == state.shape[:-1] and A.shape == state.shape[1:] and D.shape == A.shape[:-1]
    if state.dim() == 4:
        B, C = (states.repeat_interleave(state.shape[1] // states.shape[1], dim=1) for states in (B, C))
    B, C = (states.unsqueeze(-2) for states in (B, C))
    after = state * (dt.unsqueeze(-1) * A).exp() + (dt * x).unsqueeze(-1) * B
    return (after * C).sum(-1) + D * x, after


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """One token; the state is written in place."""
    assert z is dt_bias is None and not dt_softplus
    output, after = after_token(state, x, dt, A, B, C, D)
    state.copy_(after)
    return output


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False,
):  # fmt: skip
    """x `[B, L, H, P]`, dt `[B, L, H]`, A and D `[H]`, B and C `[B, L, G, N]`, states `[B, H, P, N]`."""
    assert z is dt_bias is None and not dt_softplus and return_final_states and chunk_size == 256
    heads, width = x.shape[2:]
    state = x.new_zeros(x.shape[0], heads, width, B.shape[-1]) if initial_states is None else initial_states.clone()
    rates, scale = A[:, None, None].expand(state.shape[1:]), D[:, None].expand(heads, width)
    outputs = []
    for token in range(x.shape[1]):
        step = dt[:, token, :, None].expand(-1, -1, width)
        output, state = after_token(state, x[:, token], step, rates, B[:, token], C[:, token], scale)
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """u and delta `[B, C, L]`, A `[C, N]`, B and C `[B, N, L]`, D `[C]`; last state `[B, C, N]`."""
    assert z is delta_bias is None and not delta_softplus and return_last_state
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for token in range(u.shape[-1]):
        here = (states[..., token] for states in (u, delta))
        output, state = after_token(state, *here, A, B[..., token], C[..., token], D)
        outputs.append(output)
    return torch.stack(outputs, dim=-1), state


PLAYED = {
    "CONVOLUTION_STEP": causal_conv1d_update,
    "CONVOLUTION": causal_conv1d_fn,
    "STATE_STEP": selective_state_update,
    "STATE_SCAN": mamba_chunk_scan_combined,
    "CHANNEL_SCAN": selective_scan_fn,
}


@pytest.fixture
def installed(monkeypatch):
    """All of them, noted when they are called, on whatever device."""
    called = []

    def noted(name, function):
        return lambda *arguments, **options: called.append(name) or function(*arguments, **options)

    for name, function in PLAYED.items():
        monkeypatch.setattr(getattr(kernels, name), "call", noted(name, function))
    monkeypatch.setattr(kernels.KernelFunction, "suits", lambda self, *tensors: True)
    return called


@pytest.mark.parametrize(
    "name, prompt, later, token",
    [
        ("mamba2", ["CONVOLUTION", "STATE_SCAN"], ["CONVOLUTION", "STATE_SCAN"], ["CONVOLUTION_STEP", "STATE_STEP"]),
        ("mamba", ["CONVOLUTION", "CHANNEL_SCAN"], ["CONVOLUTION"], ["CONVOLUTION_STEP", "STATE_STEP"]),
        ("gated_delta_net", ["CONVOLUTION"], ["CONVOLUTION"], ["CONVOLUTION_STEP"]),
        ("kimi_delta_attention", ["CONVOLUTION"], ["CONVOLUTION"], ["CONVOLUTION_STEP"]),
    ],
)
@torch.no_grad()
def test_a_mixer_by_the_kernels(name, prompt, later, token, installed, monkeypatch):
    """A prompt, more of it, two tokens."""
    mixer = mixer_of(name)
    parts = torch.randn(2, 12, WIDTH).split((7, 3, 1, 1), dim=1)
    cache, found = plain_cache(mixer), []
    for part, expected in zip(parts, (prompt, later, token, token), strict=True):
        installed.clear()
        found.append(run(mixer, part, cache))
        assert installed == expected
    monkeypatch.undo()
    plain = plain_cache(mixer)
    for part, output in zip(parts, found, strict=True):
        torch.testing.assert_close(output, run(mixer, part, plain), rtol=2e-5, atol=2e-5)
    for one, other in zip(cache.layers[0].recurrent_states, plain.layers[0].recurrent_states, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_gradients_through_a_scan(installed, monkeypatch):
    mixer, inputs = mixer_of("mamba2"), torch.randn(2, 7, WIDTH)
    gradients = []
    for _ in range(2):
        mixer.zero_grad()
        mix(mixer, inputs).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in mixer.parameters()])
        assert installed == ["CONVOLUTION", "STATE_SCAN"]
        monkeypatch.undo()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_they_are_called_on_a_gpu_alone_and_where_they_are_there(monkeypatch):
    step = kernels.STATE_STEP
    with FakeTensorMode():
        half, double = (torch.empty(1, device="cuda", dtype=dtype) for dtype in (torch.float16, torch.float64))
        assert not step.suits(half)
        monkeypatch.setattr(step, "installed", True)
        assert step.suits(half) and not step.suits(double) and not step.suits(torch.empty(1))
        monkeypatch.setattr("modeling_zoo.ops_dispatch.is_traced", lambda: True)
        assert not step.suits(half)


def test_the_look_up_is_transformers_own(monkeypatch):
    """Which finds functions at the top of a package, and those it knows to be further inside."""
    top = SimpleNamespace(__name__="mamba_ssm", selective_scan_fn=selective_scan_fn, __spec__=object())
    monkeypatch.setitem(
        sys.modules, "causal_conv1d", SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn, __spec__=object())
    )
    monkeypatch.setitem(sys.modules, "mamba_ssm", top)
    found = kernels.KernelFunction("causal_conv1d", kernels.causal_conv1d_fn)
    assert found.installed and found.is_there()
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 4)
    torch.testing.assert_close(
        found.call(x, weight, None, activation="silu"), causal_conv1d_fn(x, weight, activation="silu")
    )
