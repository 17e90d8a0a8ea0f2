"""Plain and gated MLPs with every activation, against formulas written out; widths that make the two equally large."""

import math

import pytest
import torch
from random_models import randomize
from transformers.activations import ACT2FN, XIELUActivation

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import ACTIVATIONS
from modeling_zoo import ZooModel
from modeling_zoo.mlp_dense import XIELU, make_dense_mlp

SIZES = {
    "vocab_size": 11, "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 28,
}  # fmt: skip


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def normal_below(x):
    """The probability that a standard normal number is below x."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mish(x):
    return x * math.tanh(math.log1p(math.exp(x)))


FORMULAS = {
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "gelu": lambda x: x * normal_below(x),
    "gelu_10": lambda x: min(max(x * normal_below(x), -10), 10),
    "gelu_accurate": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_python": lambda x: x * normal_below(x),
    "gelu_python_tanh": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "laplace": lambda x: 0.5 * (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "linear": lambda x: x,
    "mish": mish,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0),
    "relu2": lambda x: max(x, 0) ** 2,
    "relu6": lambda x: min(max(x, 0), 6),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "sqrtsoftplus": lambda x: math.sqrt(math.log1p(math.exp(x))),
    "swish": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
}


def xielu(x, alpha_p, alpha_n, beta, eps):
    """Huang & Schlag 2024, eq. 4, with the raw parameters."""
    above, below = math.log1p(math.exp(alpha_p)), beta + math.log1p(math.exp(alpha_n))
    return above * x * x + beta * x if x > 0 else (math.expm1(min(x, eps)) - x) * below + beta * x


def activation_of(config, mlp):
    if config.hidden_act != "xielu":
        return FORMULAS[config.hidden_act]
    learned = {name: float(value) for name, value in mlp.act_fn.state_dict().items()}
    return lambda x: xielu(x, **learned)


def linear(module, x):
    y = module.weight.detach().double() @ x
    return y if module.bias is None else y + module.bias.detach().double()


def slow_mlp(config, mlp, x):
    act = activation_of(config, mlp)
    inner = linear(mlp.up_proj, x)
    gate = linear(mlp.gate_proj, x) if config.gated_mlp else inner
    own = config.swiglu_config
    if own["gate_softcap"] is not None:
        cap = own["gate_softcap"]

        def act(x):
            return cap * math.tanh(x / cap) * sigmoid(x)

    if own["up_softcap"] is not None:
        inner = own["up_softcap"] * torch.tanh(inner / own["up_softcap"])
    limit, behind = config.swiglu_config["dense_limit"] or math.inf, config.swiglu_config["clamp_behind_activation"]
    before, after = (math.inf, limit) if behind else (limit, math.inf)
    activated = [min(act(min(float(value), before)), after) for value in gate]
    activated, inner = torch.tensor(activated, dtype=torch.double), inner.clamp(-limit, limit)
    inner = inner + (config.swiglu_config["dense_up_offset"] or 0.0)
    return linear(mlp.down_proj, activated * inner if config.gated_mlp else activated)


def make(**changes):
    config = ZooConfig(**SIZES | changes)
    mlp = make_dense_mlp(config)
    randomize(mlp)
    return config, mlp


@pytest.mark.sampled(3)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_the_formula(name, gated, bias):
    config, mlp = make(hidden_act=name, gated_mlp=gated, mlp_bias=bias)
    x = torch.randn(2, 3, config.hidden_size) * 5
    found = mlp(x).detach()
    expected = torch.stack([slow_mlp(config, mlp, token) for token in x.flatten(0, 1).double()]).view_as(found)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("caps", [{"gate_softcap": 0.8}, {"up_softcap": 0.6}, {"gate_softcap": 2.0, "up_softcap": 0.6}])
def test_a_smoothly_bounded_unit_equals_the_formula(caps):
    config, mlp = make(mlp_bias=True, swiglu_config=caps)
    x = torch.randn(2, 3, config.hidden_size) * 5
    expected = torch.stack([slow_mlp(config, mlp, token) for token in x.flatten(0, 1).double()]).view_as(x)
    assert (mlp(x).detach() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["silu", "relu", "gelu"])
@pytest.mark.parametrize("behind", [None, True], ids=["before", "behind"])
def test_a_clamped_unit_equals_the_formula(name, behind):
    """The limit is reached on both sides of the up projection and by the gate."""
    said = {"swiglu_config": {"dense_limit": 1.3, "clamp_behind_activation": behind}}
    config, mlp = make(hidden_act=name, mlp_bias=True, **said)
    x = torch.randn(2, 3, config.hidden_size) * 5
    expected = torch.stack([slow_mlp(config, mlp, token) for token in x.flatten(0, 1).double()]).view_as(x)
    assert (mlp(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    free = make_dense_mlp(ZooConfig(**SIZES | {"hidden_act": name, "mlp_bias": True}))
    free.load_state_dict(mlp.state_dict())
    assert (free(x) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"swiglu_config": {"clamp_behind_activation": True}}, "a swiglu_limit, swiglu_config.shared_limit or"),
        ({"swiglu_config": {"dense_limit": 2.0}, "gated_mlp": False}, "gated_mlp=True"),
        ({"swiglu_config": {"shared_limit": 2.0}}, "n_shared_experts and gated_mlp=True"),
        ({"swiglu_config": {"dense_limit": 0.0}}, "must be greater than 0"),
    ],
)
def test_bounds_that_nothing_reads_are_refused(flags, says):
    with pytest.raises(Exception, match=says):
        ZooConfig(**SIZES | flags)


def test_every_activation_of_transformers_is_allowed():
    assert set(ACT2FN) - set(ACTIVATIONS) == {"prelu"}


def test_an_unknown_activation_is_refused_with_its_nearest_name():
    with pytest.raises(Exception, match=r"hidden_act='gelu_tanh' is not one of .* Did you mean"):
        ZooConfig(**SIZES, hidden_act="gelu_tanh")


def test_xielu_is_the_one_of_transformers():
    ours, theirs = XIELU(), XIELUActivation(dtype=torch.float32)
    x = torch.randn(400) * 5
    assert torch.equal(ours(x), theirs(x))
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x), theirs(x))
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    assert torch.equal(ours(x.bfloat16()), theirs(x.bfloat16()))


def test_xielu_starts_where_its_authors_start():
    """α⁺ = α⁻ = 0.8, β = 0.5, also after a model's own initialisation and for every layer apart."""
    config = ZooConfig(**SIZES | {"num_hidden_layers": 2}, hidden_act="xielu", gated_mlp=False)
    with torch.device("meta"):
        model = ZooModel(config)
    model.to_empty(device="cpu")
    model.init_weights()
    for layer in model.layers:
        act = layer.mlp.act_fn
        assert torch.nn.functional.softplus(act.alpha_p).item() == pytest.approx(0.8)
        assert (act.beta + torch.nn.functional.softplus(act.alpha_n)).item() == pytest.approx(0.8)
        assert act.eps.item() == pytest.approx(-1e-6)
    assert model.layers[0].mlp.act_fn.alpha_p is not model.layers[1].mlp.act_fn.alpha_p


@pytest.mark.parametrize(
    "hidden, plain, gated", [(64, 256, 192), (768, 3072, 2048), (4096, 16384, 10944), (24, 96, 64)]
)
def test_inner_width_when_none_is_given(hidden, plain, gated):
    """4 · hidden, and two thirds of it in whole 64s where there are three matrices instead of two."""
    sizes = {"hidden_size": hidden, "num_attention_heads": 4, "intermediate_size": None}
    assert ZooConfig(**sizes, gated_mlp=False).intermediate_size == plain
    assert ZooConfig(**sizes).intermediate_size == gated
    assert gated % 64 == 0
    assert 0 <= 3 * hidden * gated - 2 * hidden * plain < 3 * hidden * 64
