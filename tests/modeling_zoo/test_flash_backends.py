"""Flash attention, played by slow functions behind the signatures of its packages and kernels: windows, soft-caps and
sinks reach those that have arguments for them, and all others are refused."""

from inspect import Parameter, Signature

import pytest
import torch
from combinations import SIZES
from random_models import randomize
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooPreTrainedModel

MODELS = {
    "soft-cap": {"attn_logit_softcapping": 3.0},
    "sinks": {"attention_sinks": "all"},
    "soft-cap and window": {"attn_logit_softcapping": 3.0, "sliding_window": 4},
    "sinks and window": {
        "attention_sinks": "sliding_attention",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip
calls = []


def rows(query, key, value, scale, causal, window, softcap, sinks):
    """One sequence, `[T, H, d]`, `[S, K, d]` → `[T, H, d]`, one head at a time."""
    (queries, heads, _), keys, groups, parts = query.shape, key.shape[0], query.shape[1] // key.shape[1], []
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = (distance >= 0) | (not causal)
    seen &= (distance <= window[0]) | (window[0] < 0)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // groups].T * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        shares = scores.exp() * seen
        sink = 0.0 if sinks is None else sinks[head].exp()
        parts.append(shares / (shares.sum(-1, keepdim=True) + sink) @ value[:, head // groups])
    return torch.stack(parts, dim=1)


def played(*names):
    """(flash_attn_func, flash_attn_varlen_func) with these arguments beside the common ones."""

    def both(q, k, v, lengths, softmax_scale, causal, window_size=(-1, -1), **more):
        assert set(more) <= set(names)
        calls.append(more | {"window_size": window_size})
        sinks = more.get("s_aux", more.get("learnable_sink"))
        parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
        how = (softmax_scale, causal, window_size, more.get("softcap", 0.0), sinks)
        return torch.cat([rows(*part, *how) for part in parts])

    def whole(q, k, v, **options):
        lengths = [q.shape[1]] * q.shape[0], [k.shape[1]] * k.shape[0]
        flat = (states.flatten(0, 1) for states in (q, k, v))
        return both(*flat, lengths, **options).unflatten(0, q.shape[:2])

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        return both(q, k, v, [ends.diff().tolist() for ends in (cu_seqlens_q, cu_seqlens_k)], **options)

    # transformers reads from it what a kernel can be told.
    lengths = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    told = ("q", "k", "v", *lengths, "softmax_scale", "causal", "window_size", *names)
    varlen.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in told])
    return whole, varlen


# What each package or kernel has arguments for.
BACKENDS = {
    "flash_attention_2": ("softcap",),
    "flash_attention_3": ("softcap",),
    "flash_attention_4": ("softcap", "learnable_sink"),
    "kernels-community/flash-attn2": ("softcap",),
    "kernels-community/vllm-flash-attn3": ("softcap", "s_aux"),
}


@pytest.fixture
def packages(monkeypatch):
    """All of BACKENDS, as if they were installed."""

    def imported(name, *_, **__):
        whole, varlen = played(*BACKENDS[name])
        ALL_ATTENTION_FUNCTIONS.register(name, flash_attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
        return whole, varlen, None, flash._pad_input, flash._unpad_input

    monkeypatch.setattr(flash, "_lazy_imports", imported)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    monkeypatch.setattr(ZooPreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    calls.clear()


def has_sinks(backend):
    return {"s_aux", "learnable_sink"} & set(BACKENDS[backend])


TAKEN = [(model, backend) for model in MODELS for backend in BACKENDS if "sinks" not in model or has_sinks(backend)]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name, backend", TAKEN)
@torch.no_grad()
def test_flash_equals_eager(name, backend, padding, packages):
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**SIZES, **MODELS[name])).eval()
    randomize(model)
    tokens = torch.randint(1, SIZES["vocab_size"], (2, 9))
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0

    def run():
        cache, parts = None, []
        for start, stop in ((0, 7), (7, 8), (8, 9)):
            here = {"attention_mask": mask[:, :stop]} if padding else {}
            output = model(tokens[:, start:stop], past_key_values=cache, use_cache=True, **here)
            cache = output.past_key_values
            parts.append(output.logits)
        return torch.cat(parts, dim=1)[mask.bool()]

    model.set_attn_implementation("eager")
    expected = run()
    model.set_attn_implementation(backend)
    found = run()
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert all(call.get("softcap", 0.0) == MODELS[name].get("attn_logit_softcapping", 0.0) for call in calls)
    assert any(call["window_size"][0] == 3 for call in calls) == ("window" in name)
    sinks = [call.get("s_aux", call.get("learnable_sink")) is not None for call in calls]
    assert any(sinks) == ("sinks" in name) and (all(sinks) or name != "sinks")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if not has_sinks(name)])
def test_a_backend_that_would_drop_sinks_is_refused(backend, packages):
    model = ZooForCausalLM(ZooConfig(**SIZES, attention_sinks="all"))
    with pytest.raises(ValueError, match=f"'{backend}' cannot compute .*attention_sinks.*vllm-flash-attn3"):
        model.set_attn_implementation(backend)


@pytest.mark.parametrize("backend", ["flash_attention_2", "kernels-community/vllm-flash-attn3"])
@pytest.mark.parametrize("flags", [{"position_embedding_type": "alibi"}, {"attention_type": "forgetting"}], ids=str)
def test_a_backend_that_has_no_bias_is_refused(flags, backend, packages):
    model = ZooForCausalLM(ZooConfig(**SIZES, **flags))
    with pytest.raises(ValueError, match=f"'{backend}' cannot compute"):
        model.set_attn_implementation(backend)
