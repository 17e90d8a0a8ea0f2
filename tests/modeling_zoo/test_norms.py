"""Norms: the formula in every option, and the roundings of the models that have them, to the last bit."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from references_norms import norm_heads, norm_projections
from torch import nn
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.stablelm.modeling_stablelm import StableLmLayerNormPerHead

from configuration_zoo import ZooConfig
from modeling_zoo import ops_norm
from modeling_zoo.norms import (
    NORMS,
    PROJECTION_NORMS,
    LayerNorm,
    ProjectionLayerNorm,
    ProjectionRMSNorm,
    RMSNorm,
    make_norm,
)
from modeling_zoo.norms import make_qk_norm as make_qk

EPS = 1e-2
SIZES = {"hidden_size": 20, "num_attention_heads": 3, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": 31}
KINDS = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}
CASTS = {"rms_norm": ("cast_then_scale", "scale_then_cast"), "layer_norm": ("native", "float32", None)}


def randomize(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.3)
    return norm


def options(kind):
    """Every (cast, affine, bias, unit_offset, weight per head) a norm of this kind can have."""
    for cast in CASTS[kind]:
        for per_head in (False, True):
            yield cast, False, False, False, per_head
            for unit_offset in (False, True):
                for bias in (False, True) if kind == "layer_norm" else (False,):
                    yield cast, True, bias, unit_offset, per_head


@pytest.mark.parametrize("kind, chosen", [(kind, chosen) for kind in KINDS for chosen in options(kind)], ids=str)
def test_equals_the_formula(kind, chosen):
    cast, affine, bias, unit_offset, per_head = chosen
    norm = KINDS[kind]((3, 7) if per_head else 7, EPS, affine, bias, unit_offset, cast)
    randomize(norm)
    x = torch.randn(2, 5, 3, 7) * 0.3 + 0.2
    expected = norm_heads(x, kind, EPS, norm.weight, norm.bias, float(unit_offset))
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, norm_class", [("rms_norm", ProjectionRMSNorm), ("layer_norm", ProjectionLayerNorm)])
@pytest.mark.parametrize("affine", [True, False])
def test_over_all_heads_together(kind, norm_class, affine):
    norm = randomize(norm_class(3 * 7, EPS, affine, affine and kind == "layer_norm"))
    x = torch.randn(2, 5, 3, 7)
    expected = norm_projections(x, kind, EPS, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


def original(name, size=64, heads=3):
    """(transformers' norm, zoo's, the shape of what goes in)"""
    plain, per_head = (2, 9, size), (2, 9, heads, size)
    return {
        "llama": lambda: (LlamaRMSNorm(size, EPS), RMSNorm(size, EPS, cast="cast_then_scale"), plain),
        "olmo2": lambda: (Olmo2RMSNorm(size, EPS), RMSNorm(size, EPS, cast="scale_then_cast"), plain),
        "gemma2": lambda: (
            Gemma2RMSNorm(size, EPS), RMSNorm(size, EPS, unit_offset=True, cast="scale_then_cast"), plain,
        ),
        "nanochat": lambda: (NanoChatRMSNorm(EPS), RMSNorm(size, EPS, affine=False, cast="cast_then_scale"), plain),
        "gpt2": lambda: (nn.LayerNorm(size, EPS), LayerNorm(size, EPS, bias=True, cast="native"), plain),
        "mpt": lambda: (nn.LayerNorm(size, EPS, bias=False), LayerNorm(size, EPS, cast="native"), plain),
        "opt": lambda: (
            nn.LayerNorm(size, EPS, elementwise_affine=False), LayerNorm(size, EPS, affine=False, cast="native"), plain,
        ),
        "nemotron": lambda: (
            NemotronLayerNorm1P(size, EPS), LayerNorm(size, EPS, bias=True, unit_offset=True, cast="native"), plain,
        ),
        "olmo": lambda: (OlmoLayerNorm(size), LayerNorm(size, 1e-5, affine=False, cast="float32"), plain),
        "cohere": lambda: (CohereLayerNorm(size, EPS), LayerNorm(size, EPS, cast="float32"), plain),
        "cohere_heads": lambda: (
            CohereLayerNorm((heads, size), EPS), LayerNorm((heads, size), EPS, cast="float32"), per_head,
        ),
        "chameleon_heads": lambda: (
            ChameleonLayerNorm((heads, size)), LayerNorm((heads, size), 1e-5, bias=True), per_head,
        ),
    }[name]()  # fmt: skip


ORIGINALS = [
    "llama", "olmo2", "gemma2", "nanochat", "gpt2", "mpt", "opt", "nemotron", "olmo", "cohere", "cohere_heads",
    "chameleon_heads",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ORIGINALS)
def test_rounds_as_the_original_does(name, dtype):
    theirs, ours, shape = original(name)
    randomize(theirs).to(dtype)
    ours.to(dtype).load_state_dict(theirs.state_dict())
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_rounds_as_one_kernel_per_head():
    """StableLM has a layer norm of its own for every head; here they are one, that rounds once too."""
    theirs = randomize(StableLmLayerNormPerHead(64, 3, EPS)).to(torch.bfloat16)
    x = torch.randn(20, 90, 3, 64).to(torch.bfloat16)
    expected, differing = theirs(x.transpose(1, 2)).transpose(1, 2), {}
    for cast in ("native", None):
        ours = LayerNorm((3, 64), EPS, cast=cast).to(torch.bfloat16)
        ours.weight.data = torch.stack([norm.weight.data for norm in theirs.norms])
        differing[cast] = (ours(x) != expected).float().mean()
    assert differing["native"] < 1e-3 and differing[None] > 1e-1


def test_cast_orders_differ_below_float32():
    """Otherwise the equalities above would say nothing about the order."""
    x = torch.randn(50, 64).to(torch.bfloat16)
    first, second = (randomize(RMSNorm(64, EPS, cast=cast)).to(torch.bfloat16) for cast in CASTS["rms_norm"])
    second.load_state_dict(first.state_dict())
    assert not torch.equal(first(x), second(x))


@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("norm_class", [RMSNorm, LayerNorm])
def test_starts_and_is_initialised_as_no_scale(norm_class, unit_offset):
    norm = norm_class(9, EPS, bias=norm_class is LayerNorm, unit_offset=unit_offset)
    bare = norm_class(9, EPS, affine=False)
    x = torch.randn(4, 9)
    assert torch.equal(norm(x), bare(x))
    randomize(norm)
    assert not torch.equal(norm(x), bare(x))
    norm.initialize(0.02)
    assert torch.equal(norm(x), bare(x))


STREAMS = {
    "rms": {},
    "rms_offset": {"norm_unit_offset": True},
    "rms_bare": {"norm_elementwise_affine": False},
    "layer": {"norm_type": "layer_norm"},
    "layer_no_bias": {"norm_type": "layer_norm", "norm_bias": False},
    "layer_offset": {"norm_type": "layer_norm", "norm_unit_offset": True},
    "layer_bare": {"norm_type": "layer_norm", "norm_elementwise_affine": False},
}


@pytest.mark.parametrize("fields", STREAMS.values(), ids=STREAMS)
def test_the_stream_s_norm_is_what_the_config_says(fields):
    config = ZooConfig(**SIZES, norm_eps=EPS, **fields)
    norm = randomize(make_norm(config, 20))
    assert type(norm) is NORMS[config.norm_type]
    assert (norm.weight is not None) == config.norm_elementwise_affine
    assert (norm.bias is not None) == config.norm_bias
    x = torch.randn(2, 3, 1, 20)
    expected = norm_heads(x, config.norm_type, EPS, norm.weight, norm.bias, float(config.norm_unit_offset))
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", ["shared", "per_head", "none"])
@pytest.mark.parametrize("scope", ["head", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_queries_and_keys_is_what_the_config_says(kind, scope, weight):
    fields = {"qk_norm": kind, "qk_norm_config.scope": scope, "qk_norm_config.weight": weight, "norm_unit_offset": True}
    if (scope, weight) == ("full", "per_head"):
        with pytest.raises((ValueError, StrictDataclassError), match="qk_norm_config.scope"):
            ZooConfig(**SIZES, **fields)
        return
    config = ZooConfig(**SIZES, norm_eps=EPS, **fields)
    norm = randomize(make_qk(config, 3))
    assert type(norm) is {"head": NORMS, "full": PROJECTION_NORMS}[scope][kind]
    shapes = {("head", "shared"): (8,), ("head", "per_head"): (3, 8), ("full", "shared"): (24,)}
    assert (None if norm.weight is None else tuple(norm.weight.shape)) == shapes.get((scope, weight))
    x = torch.randn(2, 5, 3, 8)
    reference = norm_heads if scope == "head" else norm_projections
    # An offset stored in the stream's norm is stored in one of the same kind here.
    offset = float(kind == config.norm_type)
    expected = reference(x, kind, EPS, norm.weight, norm.bias, offset)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"norm_type": "group_norm"}, "norm_type"),
        ({"precision.norm": "float32"}, "precision.norm"),
        ({"norm_bias": True}, "norm_bias"),
        ({"norm_elementwise_affine": False, "norm_unit_offset": True}, "norm_unit_offset"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"precision.parallel_sum_order": "residual_first"}, "precision.parallel_sum_order"),
        ({"block_type": "parallel", "precision.parallel_sum_order": "mlp_first"}, "precision.parallel_sum_order"),
        ({"qk_norm_config.eps": 1e-6}, "qk_norm_config.eps"),
    ],
    ids=str,
)
def test_contradictions_are_refused_by_name(fields, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        ZooConfig(**SIZES, **fields)


@pytest.fixture
def calls(monkeypatch):
    """{form: how many tokens each call of it was given}."""
    found = {"plain_rms_norm": [], "fused_rms_norm": []}

    def count(name):
        form, tokens = getattr(ops_norm, name), found[name]
        monkeypatch.setattr(ops_norm, name, lambda x, *args: tokens.append(x.shape[1]) or form(x, *args))

    for name in found:
        count(name)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"unit_offset": True}, {"cast": "cast_then_scale"}, {"cast_input": True}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(20,), (3, 20)], ids=str)
def test_the_fused_norm_is_the_plain_one_to_the_last_bit(shape, options, dtype, calls):
    norm = randomize(RMSNorm(shape, EPS, **options)).to(dtype)
    x = torch.randn(2, 7, 3, 20).to(torch.float32 if options.get("cast_input") else dtype)
    expected = norm(x).detach()
    assert calls == {"plain_rms_norm": [7], "fused_rms_norm": []}
    with torch.no_grad():
        found = norm(x)
        assert calls == {"plain_rms_norm": [7], "fused_rms_norm": [7]}
        assert found.dtype == expected.dtype and torch.equal(found, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(norm(x), expected)
        assert calls["fused_rms_norm"] == [7, 7]
        # Torch computes float64 in itself, and rounds these after the weight.
        RMSNorm(shape, EPS).double()(x.double())
        RMSNorm(shape, EPS, cast="scale_then_cast").to(dtype)(x)
    assert calls == {"plain_rms_norm": [7, 7, 7], "fused_rms_norm": [7, 7]}


@pytest.mark.parametrize("norm_class, shape", [(RMSNorm, (20,)), (RMSNorm, (3, 8)), (ProjectionRMSNorm, (24,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_tokens_at_a_time_is_all_at_once_to_the_last_bit(norm_class, shape, dtype, calls, monkeypatch):
    norm = randomize(norm_class(shape, EPS)).to(dtype)
    x = torch.randn(2, 29, 3, 8).to(dtype) if shape != (20,) else torch.randn(2, 29, 20).to(dtype)
    expected = norm(x)
    monkeypatch.setattr(ops_norm, "CHUNK_NUMBERS", 200)
    assert torch.equal(norm(x), expected) and calls == {"plain_rms_norm": [29, 29], "fused_rms_norm": []}
    with torch.no_grad():
        assert torch.equal(norm(x), expected)
        assert len(calls["fused_rms_norm"]) > 3 and sum(calls["fused_rms_norm"]) == 29


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind, chosen", [(kind, chosen) for kind in KINDS for chosen in options(kind)], ids=str)
def test_a_stream_wider_than_the_weights_keeps_its_dtype(kind, chosen, weight_dtype):
    """residual_in_fp32: the norms that do not round it first."""
    cast, affine, bias, unit_offset, per_head = chosen
    norm = randomize(KINDS[kind]((3, 7) if per_head else 7, EPS, affine, bias, unit_offset, cast)).to(weight_dtype)
    x = torch.randn(2, 5, 3, 7) * 0.3 + 0.2
    expected = norm_heads(x, kind, EPS, norm.weight, norm.bias, float(unit_offset))
    for found in (norm(x), norm(x.requires_grad_())):
        assert found.dtype == torch.float32
        # An offset is added in the weight's dtype, so 1 + weight is rounded there.
        rtol = 2 * torch.finfo(weight_dtype).eps if unit_offset else 1e-5
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chosen", options("rms_norm"), ids=str)
def test_the_norm_of_a_device_is_the_plain_one(chosen, dtype, weight_dtype, calls, monkeypatch):
    """Torch's kernel in place of the formula, values and gradients; here by the operations that it has on a CPU."""
    cast, affine, _, unit_offset, per_head = chosen
    norm = randomize(RMSNorm((3, 20) if per_head else 20, EPS, affine, False, unit_offset, cast)).to(weight_dtype)
    x = (torch.randn(2, 7, 3, 20) * 3 + 1).to(dtype).requires_grad_()
    leaves, results = [x, *norm.parameters()], []
    for on_device in (False, True):
        monkeypatch.setattr(ops_norm, "is_eager_cuda", lambda x, on_device=on_device: on_device)
        if on_device:
            monkeypatch.setattr(ops_norm, "is_eager_cpu_inference", lambda x: False)
        output = norm(x)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), leaves)))
    assert calls["plain_rms_norm"] == [7]
    for plain, fused in zip(*results, strict=True):
        assert plain.dtype == fused.dtype
        if unit_offset and cast == "scale_then_cast":
            # One more rounding in float32, which rarely shows in a narrower dtype.
            torch.testing.assert_close(plain, fused)
            assert (plain != fused).float().mean() < 0.02 or plain.dtype == torch.float32
        else:
            assert torch.equal(plain, fused)
    with torch.no_grad():
        assert torch.equal(norm(x), results[1][0]) and calls["plain_rms_norm"] == [7]
        norm.double()(x.double())
    assert calls["plain_rms_norm"] == [7, 7]
