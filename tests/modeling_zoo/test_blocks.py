"""How a layer's two halves join the stream, each topology against the formula of its paper."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from samples import every

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import BLOCK_TYPES, WEIGHTED_BLOCKS, WHOLE_STACK_BLOCKS
from modeling_zoo import ZooForCausalLM, ZooModel
from modeling_zoo.block_topologies import BLOCKS, NORM_SLOTS

SIZES = {
    "vocab_size": 17, "hidden_size": 20, "intermediate_size": 28, "num_attention_heads": 5, "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}  # fmt: skip
NORMS = {
    "rms": {},
    "rms_offset": {"norm_unit_offset": True, "norm_eps": 1e-3},
    "rms_bare": {"norm_elementwise_affine": False},
    "layer": {"norm_type": "layer_norm", "norm_eps": 1e-3},
    "layer_offset": {"norm_type": "layer_norm", "norm_unit_offset": True},
    "layer_without_bias": {"norm_type": "layer_norm", "norm_bias": False, "precision.norm": "float32"},
    "layer_bare": {"norm_type": "layer_norm", "norm_elementwise_affine": False},
}

# Those with several streams are in test_hyper_connections.py, test_altup.py and
# test_attention_residuals.py, those that layers share in test_state_space_models.py.
ALONE = [name for name in BLOCK_TYPES if name != "shared_block"]
ONE_STREAM = [name for name in ALONE if name not in WHOLE_STACK_BLOCKS]


def normalise(x, kind, eps):
    """One token's channels, mean (layer norm only) and size taken away."""
    if kind == "layer_norm":
        x = x - x.mean()
    return x / math.sqrt(float((x * x).mean()) + eps)


def norm(layer, name, config):
    """The norm in slot `name`, and its gate if it has one, token by token in float64."""
    own = {
        key.removeprefix(f"{name}."): value.double() for key, value in layer.state_dict().items() if f"{name}." in key
    }
    parameters = {key.removeprefix("norm."): value for key, value in own.items()}

    def apply(x):
        tokens = [normalise(token, config.norm_type, config.norm_eps) for token in x.double().flatten(0, -2)]
        y = torch.stack(tokens).view_as(x)
        if "weight" in parameters:
            y = y * (parameters["weight"] + (1 if config.norm_unit_offset else 0))
        y = y + parameters.get("bias", 0.0)
        if "a_proj.weight" not in parameters:
            return y
        inner = y @ parameters["a_proj.weight"].T
        gate = (inner / (1 + torch.exp(-inner))) @ parameters["b_proj.weight"].T
        return y / (1 + torch.exp(-gate))

    return apply


def slow_block(name, x, f, g, norms, m):
    """The residual stream behind a layer of mixer f and MLP g; norms by slot, m on every branch."""
    a, ao, b, bo = (norms[slot] for slot in ("attn_norm", "attn_output_norm", "mlp_norm", "mlp_output_norm"))
    # Without experts in it, what a shortcut leads around is a plain layer.
    if name in ("pre_norm", "sub_norm", "gated_norm", "gated_attn_norm", "shortcut"):
        y = x + m * f(a(x))
        return y + m * g(b(y))
    if name == "output_norm":
        y = x + m * ao(f(x))
        return y + m * bo(g(y))
    if name in ("sandwich_norm", "scaled_sandwich_norm"):
        y = x + m * ao(f(a(x)))
        return y + m * bo(g(b(y)))
    if name == "post_norm":
        y = ao(x + m * f(x))
        return bo(y + m * g(y))
    if name == "pre_norm_residual":
        n = a(x)
        y = b(n + m * f(n))
        return y + m * g(y)
    if name == "parallel":
        return x + m * f(a(x)) + m * g(a(x))
    if name == "parallel_two_norms":
        return x + m * f(a(x)) + m * g(b(x))
    return x + m * f(a(x)) if name == "mixer_only" else x + m * g(b(x))


def make(**changes):
    model = ZooModel(ZooConfig(**SIZES | changes)).eval()
    randomize(model)
    return model


def halves(layer):
    """The mixer and the MLP of a layer as plain functions of the stream."""

    def mixer(x):
        angles = torch.ones(1, x.shape[1], layer.self_attn.head_dim)
        return layer.self_attn(x.float(), position_embeddings=(angles.cos(), angles.sin()))[0].double()

    return mixer, lambda x: layer.mlp(x.float()).double()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("multiplier", every(2, [0.3, 1.0]))
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("block", ONE_STREAM)
def test_equals_its_formula(block, norms, multiplier):
    model = make(block_type=block, residual_multiplier=multiplier, **NORMS[norms])
    layer, config = model.layers[1], model.config
    slots = {
        slot: norm(layer, slot, config) for slot in ("attn_norm", "attn_output_norm", "mlp_norm", "mlp_output_norm")
    }
    x = torch.randn(2, 7, config.hidden_size) * 2
    with torch.no_grad():
        angles = torch.ones(1, 7, 4)
        found = layer(x, position_embeddings=(angles.cos(), angles.sin()))
        mixer, mlp = halves(layer)
        expected = slow_block(block, x.double(), mixer, mlp, slots, multiplier) * getattr(layer, "layer_scalar", 1.0)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


FACTORS = {
    "full_attn_alpha": 1.3, "full_attn_beta": 0.7, "linear_attn_alpha": 0.9, "linear_attn_beta": 1.2, "mlp_alpha": 1.1,
    "mlp_beta": 0.6,
}  # fmt: skip


@pytest.mark.parametrize("index, kind", [(0, "linear"), (1, "full")])
@pytest.mark.parametrize("block", WEIGHTED_BLOCKS)
def test_residuals_and_outputs_have_factors_of_their_own(block, index, kind):
    words = {"layer_types": ["linear_attention", "full_attention"], "linear_attention_type": "gated_delta_net"}
    model = make(block_type=block, residual_multiplier=0.5, residual_factors=FACTORS, **words)
    layer, config = model.layers[index], model.config
    a, ao, b, bo = (norm(layer, slot, config) for slot in NORM_SLOTS)
    alpha, beta = (FACTORS[f"{kind}_attn_{factor}"] for factor in ("alpha", "beta"))
    x = torch.randn(2, 7, config.hidden_size) * 2
    angles = torch.ones(1, 7, 4)
    rotation = {"position_embeddings": (angles.cos(), angles.sin())}
    with torch.no_grad():
        found = layer(x, **rotation)
        mlp = halves(layer)[1]

        def mixer(x):
            return layer.mixer(x.float(), rotation).double()

        if block == "post_norm":
            y = ao(alpha * x.double() + beta * 0.5 * mixer(x))
            expected = bo(1.1 * y + 0.6 * 0.5 * mlp(y))
        else:
            n = a(x)
            y = b(alpha * n + beta * 0.5 * mixer(n))
            expected = 1.1 * y + 0.6 * 0.5 * mlp(y)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "fields, match",
    [
        (
            {"residual_factors": {"mlp_alpha": 2.0}},
            r"residual_factors.mlp_alpha=2.0 only means something with a block_type of \['post_norm'",
        ),
        (
            {"block_type": "post_norm", "residual_factors": {"linear_attn_beta": 2.0}},
            "residual_factors.linear_attn_beta=2.0 only means",
        ),
        (
            {"block_type": "post_norm", "residual_factors.mlp_beta": 0.0},
            "residual_factors.mlp_beta=0.0 must be greater than 0",
        ),
    ],
)
def test_factors_that_would_do_nothing_or_silence_a_branch_are_refused(fields, match):
    with pytest.raises(StrictDataclassError, match=match):
        ZooConfig(**SIZES, **fields)


@pytest.mark.parametrize("multiplier", [1.0, 0.3])
def test_experts_of_a_shortcut_join_after_the_next_layer(multiplier):
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    words = ["sparse", "sparse", "dense"]
    model = make(
        block_type="shortcut", num_hidden_layers=3, mlp_layer_types=words, residual_multiplier=multiplier, **experts
    )
    model.norm = torch.nn.Identity()
    tokens = torch.randint(0, 17, (2, 7))
    with torch.no_grad():
        found = model(tokens).last_hidden_state
        rotation = model.rotary_emb(found, torch.arange(7)[None])
        x, late = model.embed_tokens(tokens).double(), 0.0
        for layer in model.layers:
            normed = norm(layer, "attn_norm", model.config)(x).float()
            mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
            y = x + multiplier * layer.self_attn(normed, position_embeddings=rotation, attention_mask=mask)[0]
            normed = norm(layer, "mlp_norm", model.config)(y).float()
            x = y + multiplier * layer.mlp(normed) + late
            late = multiplier * layer.moe(normed) if layer.moe is not None else 0.0
    assert (found - x).abs().max() <= 1e-5 * x.abs().max()


def test_every_name_of_the_config_has_a_class_and_the_other_way_round():
    assert set(BLOCK_TYPES) == set(BLOCKS)


def test_a_norm_stands_in_front_of_each_last_projection():
    layer = make(block_type="sub_norm", attn_output_gate="headwise", norm_type="layer_norm").layers[0]
    for part, projection in ((layer.self_attn, layer.self_attn.o_proj), (layer.mlp, layer.mlp.down_proj)):
        found = []
        part.sub_norm.register_forward_hook(lambda module, given, output, found=found: found.append((given[0], output)))
        projection.register_forward_pre_hook(lambda module, given, found=found: found.append(given[0]))
        halves(layer)[part is layer.mlp](torch.randn(2, 7, 20))
        (given, normed), projected = found
        expected = torch.nn.functional.layer_norm(
            given, given.shape[-1:], part.sub_norm.weight, part.sub_norm.bias, 1e-6
        )
        assert projected is normed and torch.allclose(normed, expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["linear_attention"] * 2, "linear_attention_type": "gated_delta_net"},
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    ],
    ids=str,
)
def test_a_norm_inside_needs_attention_and_a_dense_mlp(fields):
    with pytest.raises(StrictDataclassError, match="block_type 'sub_norm' of layer 0 has a norm inside"):
        ZooConfig(**SIZES, block_type="sub_norm", **fields)


@pytest.mark.parametrize("order", ["residual_first", "branches_first"])
def test_order_of_the_parallel_sum(order):
    """In bfloat16 (x + f) + g and x + (f + g) round differently: the one asked for is the one computed."""
    layer = make(block_type="parallel", precision={"parallel_sum_order": order}).bfloat16().layers[0]
    x = (torch.randn(2, 9, 20) * 3).bfloat16()
    with torch.no_grad():
        angles = torch.ones(1, 9, 4)
        rotation = {"position_embeddings": (angles.cos().bfloat16(), angles.sin().bfloat16())}
        found, normed = layer(x, **rotation), layer.attn_norm(x)
        f, g = layer.self_attn(normed, **rotation)[0], layer.mlp(normed)
    sums = {"residual_first": (x + f) + g, "branches_first": x + (f + g)}
    assert torch.equal(found, sums[order])
    assert not torch.equal(*sums.values())


def test_topologies_may_differ_from_layer_to_layer():
    names = ["pre_norm", "parallel", "output_norm", "mixer_only", "mlp_only", "post_norm"]
    words = ["full_attention"] * 4 + ["moe", "full_attention"]
    model = make(num_hidden_layers=6, block_type=names, layer_types=words)
    assert [type(layer) for layer in model.layers] == [BLOCKS[name] for name in names]
    tokens = torch.randint(0, 17, (2, 8))
    with torch.no_grad():
        whole = model(tokens).last_hidden_state
        first = model(tokens[:, :5], use_cache=True)
        rest = model(tokens[:, 5:], past_key_values=first.past_key_values).last_hidden_state
    torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", ALONE)
def test_gradients_reach_every_parameter(block):
    words = {"layer_types": ["moe"] * 2} if block == "mlp_only" else {}
    model = ZooForCausalLM(ZooConfig(**SIZES, block_type=block, **words))
    randomize(model)
    tokens = torch.randint(0, 17, (2, 8))
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("block", ONE_STREAM)
def test_dropout_stands_on_each_branch_and_not_on_the_stream(block):
    """With everything dropped only the stream is left, through the norms that stand on it."""
    model = make(block_type=block, residual_dropout=0.5)
    layer, config = model.layers[0], model.config
    layer.dropout.p = 1.0
    layer.train()
    x = torch.randn(2, 7, config.hidden_size)
    slots = {
        slot: norm(layer, slot, config) for slot in ("attn_norm", "attn_output_norm", "mlp_norm", "mlp_output_norm")
    }
    with torch.no_grad():
        angles = torch.ones(1, 7, 4)
        found = layer(x, position_embeddings=(angles.cos(), angles.sin()))
    expected = slow_block(block, x.double(), lambda x: 0.0, lambda x: 0.0, slots | _silent(block, slots), 1.0)
    expected = expected * getattr(layer, "layer_scalar", 1.0)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def _silent(block, slots):
    """Norms of a branch give nothing where the branch does; those on the stream stay."""
    on_the_stream = {
        "post_norm": ("attn_output_norm", "mlp_output_norm"),
        "pre_norm_residual": ("attn_norm", "mlp_norm"),
    }
    return {slot: (lambda x: 0.0) for slot in slots if slot not in on_the_stream.get(block, ())}


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["full_attention"] * 2, "block_type": ["mlp_only", "pre_norm"]},
        {"layer_types": ["moe", "full_attention"], "block_type": "pre_norm"},
    ],
)
def test_a_layer_without_a_mixer_says_so_twice(fields):
    """Its word decides what is cached and its block what is computed: one without the other counts wrong positions."""
    with pytest.raises(StrictDataclassError, match=r"layer_types\[0\]=.* contradict each other"):
        ZooConfig(**SIZES, **fields)


def test_the_word_of_a_layer_without_a_mixer_is_derived():
    config = ZooConfig(**SIZES, block_type=["mlp_only", "parallel"], sliding_window=5)
    assert config.layer_types == ["moe", "sliding_attention"]
