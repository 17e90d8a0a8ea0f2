"""Several residual streams: against transformers' own modules, against the formula, and as a flag on any model."""

import pytest
import torch
from combinations import EXPERTS, HEADS, LATENT, SIZES, linear
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from transformers import StaticCache
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.hy_v4 import modeling_hy_v4 as hy_v4
from transformers.models.hy_v4.configuration_hy_v4 import HYV4Config

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.block_hyper_connections import HyperConnection, IndependentConnection, StreamHead, doubly_stochastic

FLAGS = {"block_type": "hyper_connection", "hc_mult": 3, "hc_sinkhorn_iters": 5, "hc_eps": 1e-4, "norm_eps": 1e-3}
SMALL = {**SIZES, "num_hidden_layers": 2}


def config(**changes):
    return ZooConfig(**{**SMALL, **FLAGS, **changes})


def their_config():
    numbers = {name: FLAGS[name] for name in ("hc_mult", "hc_sinkhorn_iters", "hc_eps")}
    return DeepseekV4Config(hidden_size=48, num_hidden_layers=2, rms_norm_eps=1e-3, **numbers)


@pytest.fixture
def streams():
    return torch.randn(2, 7, 3, 48, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_connection_equals_that_of_transformers(streams, dtype):
    ours, original = HyperConnection(config()), theirs.DeepseekV4HyperConnection(their_config())
    randomize(ours)
    original.load_state_dict(ours.state_dict())
    streams = streams.to(dtype)
    read, post, comb = ours(streams)
    for found, expected in zip((post, comb, read), original(streams), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert post.std() > 0.1 and comb.std() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_connection_without_mixing_equals_that_of_transformers(streams, dtype):
    numbers = {"hc_mult": 3, "hc_eps": 1e-4, "hc_magnitude": 1.7, "rms_norm_eps": 1e-3}
    original = hy_v4.HYV4HyperConnection(HYV4Config(hidden_size=48, num_hidden_layers=2, **numbers))
    ours = IndependentConnection(config(hc_sinkhorn_iters=0, **{"residual_factors.stream": 1.7}))
    randomize(ours)
    original.load_state_dict(ours.state_dict())
    streams = streams.to(dtype)
    read, post = ours(streams)
    exact = {"rtol": 2**-8 if dtype == torch.bfloat16 else 1e-6, "atol": 1e-6}
    for found, expected in zip((post, read), original(streams), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, **exact)
    output = torch.randn(2, 7, 48, dtype=dtype)
    written = (post.float().unsqueeze(-1) * output.float().unsqueeze(-2) + streams.float()).to(dtype)
    assert torch.equal(ours.write(streams, output, post), written)
    assert post.std() > 0.1


@torch.no_grad()
def test_the_head_equals_that_of_transformers(streams):
    ours, original = StreamHead(config()), theirs.DeepseekV4HyperHead(their_config())
    randomize(ours)
    original.load_state_dict({f"hc_{name}": tensor for name, tensor in ours.state_dict().items()})
    assert torch.equal(ours(streams), original(streams))


def test_mixing_is_doubly_stochastic():
    weights = torch.rand(5, 4, 4, dtype=torch.double) + 0.1
    found = doubly_stochastic(weights, 60, 1e-12)
    ones = torch.ones(5, 4, dtype=torch.double)
    torch.testing.assert_close(found.sum(-1), ones, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.sum(-2), ones, rtol=1e-9, atol=1e-9)
    assert (found - 0.25).abs().max() > 0.05


def slow_connection(x, pre, post, comb, compute):
    """`[B, T, n, D]`: a branch reads a sum of the n streams, and each is written from its output and all of them."""
    streams = range(x.shape[2])
    output = compute(sum(pre[..., n, None] * x[:, :, n] for n in streams))
    written = [post[..., k, None] * output + sum(comb[..., j, k, None] * x[:, :, j] for j in streams) for k in streams]
    return torch.stack(written, dim=2)


@torch.no_grad()
def test_a_layer_equals_its_formula(streams):
    """Token by token and stream by stream, in float64."""
    model = ZooForCausalLM(config(residual_multiplier=0.7)).eval()
    randomize(model)
    layer = model.model.layers[1]
    angles = torch.ones(1, 7, 12)
    rotation = {"position_embeddings": (angles.cos(), angles.sin())}
    x = streams.double()
    halves = (
        (layer.attn_hc, lambda read: layer.self_attn(layer.attn_norm(read), **rotation)[0]),
        (layer.mlp_hc, lambda read: layer.mlp(layer.mlp_norm(read))),
    )
    for connection, compute in halves:
        _, post, comb = (part.double() for part in connection(x.float()))
        pre = torch.sigmoid(connection.weights(x.float())[0].double()) + 1e-4
        x = slow_connection(x, pre, post, comb, lambda read, of=compute: 0.7 * of(read.float()).double())
    torch.testing.assert_close(layer(streams, **rotation).double(), x, rtol=1e-5, atol=1e-5)


VARIANTS = {
    "plain": {},
    "no mixing": {"hc_sinkhorn_iters": 0, **LATENT},
    "latent experts": {**LATENT, **EXPERTS, "mlp_layer_types": ["dense", "sparse"]},
    "recurrence": linear("gated_delta_net", ["linear_attention", "full_attention"], **HEADS),
    "windows": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "norm_type": "layer_norm"},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_model_may_have_streams(variant, tmp_path):
    torch.manual_seed(0)
    model = ZooForCausalLM(config(**VARIANTS[variant]))
    randomize(model)
    tokens = torch.randint(1, 101, (2, 9))
    model(tokens, labels=tokens).loss.backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert [name for name in without if ".experts." not in name] == []
    model.eval().generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, use_cache=False, **options)
    assert torch.equal(model.generate(tokens, **options), expected)
    if variant != "recurrence":
        assert torch.equal(model.generate(tokens, cache_implementation="static", **options), expected)
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    names = (".attn_hc.", ".mlp_hc.", ".hc_head.")
    kept = {name for name, parameter in again.named_parameters() if parameter.dtype == torch.float32}
    assert kept >= {name for name, _ in again.named_parameters() if any(part in name for part in names)}
    assert torch.isfinite(again(tokens).logits).all()


def test_one_stream_that_is_kept_and_written_whole_is_the_plain_residual():
    """pre = post = comb = 1: sigmoid(0) · 2, and the one matrix of one number there is."""
    plain = ZooForCausalLM(ZooConfig(**SMALL)).eval()
    randomize(plain)
    streamed = ZooForCausalLM(config(hc_mult=1, hc_eps=1e-12, norm_eps=plain.config.norm_eps)).eval()
    streamed.load_state_dict(plain.state_dict(), strict=False)
    for name, parameter in streamed.named_parameters():
        if "_hc." in name or "hc_head" in name:
            parameter.data.zero_()
    # sigmoid(40) is one: all of the stream is read.
    for connection in (part for layer in streamed.model.layers for part in (layer.attn_hc, layer.mlp_hc)):
        connection.base.data[0] = 40.0
    streamed.model.hc_head.base.data.fill_(40.0)
    tokens = torch.randint(1, 101, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(streamed(tokens).logits, plain(tokens).logits, rtol=1e-5, atol=1e-5)


REFUSED = {
    "one layer": ({"block_type": ["hyper_connection", "pre_norm"]}, "so every layer has it"),
    "no streams": ({"block_type": "pre_norm"}, "hc_mult=3 only means something with block_type='hyper_connection'"),
    "rows": ({"hidden_size_per_layer_input": 4}, "hidden_size_per_layer_input=4 only means something with"),
    "none": ({"hc_mult": 0}, "hc_mult=0 must be greater than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_field(case):
    flags, sentence = REFUSED[case]
    with pytest.raises(StrictDataclassError) as error:
        config(**flags)
    assert sentence in str(error.value.__cause__)


@torch.no_grad()
@pytest.mark.long
def test_a_compiled_token_is_one_graph():
    model = ZooForCausalLM(config()).eval()
    randomize(model)
    tokens = torch.randint(1, 101, (2, 10))
    cache = StaticCache(model.config, max_cache_len=16)
    model(tokens[:, :9], past_key_values=cache, use_cache=True)
    step = torch.compile(model.forward, backend="eager", fullgraph=True)
    found = step(tokens[:, 9:], past_key_values=cache, position_ids=torch.tensor([[9]]), use_cache=True).logits
    torch.testing.assert_close(found, model(tokens).logits[:, 9:], rtol=1e-5, atol=1e-5)
