"""The recurrent mixers against transformers' own modules, and the fields that describe them."""

from importlib import import_module

import pytest
import torch
import transformers
from checkpoint_checks import LEAKS_PADDING
from huggingface_hub.errors import StrictDataclassError
from layer_pairs import RECURRENT, Pair, SideBySide, recurrent_layers, variants
from random_mixers import SIZES, TOKENS, VARIANTS, WIDTH, assert_equal, mixer_of, randomized, run, zoo_config
from transformers import DynamicCache
from versions import older_than

from configuration_zoo import ZooConfig
from conversion import family_of
from modeling_zoo import ZooForCausalLM
from modeling_zoo.attention import GroupedQueryAttention
from modeling_zoo.block_layer import ZooDecoderLayer
from modeling_zoo.recurrent_hybrid import LINEAR_MIXERS
from modeling_zoo.registry import make_mixers

# -- transformers' modules -----------------------------------------------------------------------------------------


# Besides the variants of the family files, or where those differ from what theirs can be compared in: a state as wide
# as the stream, an output as the mixer gives it, time steps that a bound cuts off.
CHANGES = {"recurrent_gemma": {"lru_width": 48}, "falcon_h1": {"ssm_out_multiplier": 1.0}}
VARIANTS_OF_THEIRS = variants(lambda config: config.linear_attention_type is not None)
# What only a slow reference of the tests computes has no cache, and no classes of transformers.
CASES = [
    (name, number, CHANGES.get(name, {})) for name, number in VARIANTS_OF_THEIRS if not family_of(name).config_class
]
CASES.append(("zamba2", 2, {"time_step_min": 0.9, "time_step_max": 1.0}))
ONE_WRITE = {"linear_attn_config": {"num_householder": 1}}
# Mixers of families that `conversion` does not know -> whose place they take, what their config says more, and ours.
BORROWED = {
    "Glm5NextTextLinearAttention": (
        "kimi_linear", {"linear_lower_bound": -3.0},
        {"linear_attn_config.decay": "bounded_sigmoid", "linear_attn_config.lower_bound": -3.0},
    ),
    "Lfm3ShortConv": ("lfm2", {}, {}),
}  # fmt: skip
MODELING = {"Glm5NextTextLinearAttention": "glm5_next", "Lfm3ShortConv": "lfm3"}
CASES += [(name, 1, {}) for name in BORROWED if hasattr(transformers.models, MODELING[name])]
# Up to transformers 5.19: one norm over all groups, or a state that a second call over the cache does not read.
MENDED_SINCE = {"mamba2", "bamba", "granitemoehybrid"} | {("falcon_h1", 1), ("falcon_h1", 2)}
# Theirs takes several tokens over a filled cache for the first ones.
ONE_BY_ONE = {"falcon_mamba", "jamba", "mamba", "recurrent_gemma", "zamba"}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    if {request.param[0], request.param[:2]} & MENDED_SINCE and older_than("5.20"):
        pytest.skip(f"transformers {transformers.__version__} has a mistake there")
    return request.param


@pytest.fixture
def both(case, tmp_path):
    pair = borrowed(tmp_path, *case[:2]) if case[0] in BORROWED else Pair(tmp_path, case[0], case[1], **case[2])
    return SideBySide(pair, recurrent_layers(pair))


def borrowed(folder, name, number):
    """A pair in which another class does the work of theirs, with tensors of the same names."""
    family, theirs, flags = BORROWED[name]
    kind = getattr(import_module("transformers.models.{0}.modeling_{0}".format(MODELING[name])), name)
    pair = Pair(folder, family, number)
    vars(pair.theirs.config).update(theirs)
    for path, mixer in [*pair.theirs.named_modules()]:
        if RECURRENT.search(type(mixer).__name__):
            other = kind(pair.theirs.config, mixer.layer_idx).eval()
            shapes = other.state_dict()
            other.load_state_dict({key: x.view_as(shapes[key]) for key, x in mixer.state_dict().items()})
            pair.theirs.set_submodule(path, other)
    weights = pair.ours.state_dict()
    pair.ours = ZooForCausalLM(ZooConfig.from_dict(pair.ours.config.to_dict() | flags)).eval()
    pair.ours.load_state_dict(weights)
    return pair


def assert_all_equal(pairs):
    for expected, found in pairs:
        assert_equal(found, expected)


def tokens_of():
    return torch.randint(1, 101, (2, TOKENS))


@pytest.mark.sampled(4)
def test_equals_transformers(both):
    assert_all_equal(both.run(tokens_of(), use_cache=False))


@pytest.mark.sampled(4)
def test_equals_transformers_over_a_cache(case, both):
    cuts = ((0, 7), (7, 8), (8, 9)) + (((9, 15), (15, 16)) if case[0] not in ONE_BY_ONE else ())
    if "time_step_min" in case[2]:
        # Theirs clamps the time steps of a prefill but not those of single tokens.
        cuts = cuts[:1]
    tokens = tokens_of()
    for start, stop in cuts:
        assert_all_equal(both.run(tokens, start, stop))


@pytest.mark.sampled(4)
def test_equals_transformers_under_left_padding(case, both):
    tokens, mask = tokens_of(), torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :6] = 0
    # Where theirs lets the padding in, the row without any.
    rows = 1 if case[:2] in LEAKS_PADDING or case[0] == "Lfm3ShortConv" else 2
    assert_all_equal(both.run(tokens, 0, TOKENS - 1, mask, rows=rows))
    if case[0] not in ONE_BY_ONE and "time_step_min" not in case[2]:
        assert_all_equal(both.run(tokens, TOKENS - 1, TOKENS, mask, rows=rows))


# -- side by side with attention -----------------------------------------------------------------------------------


def test_hybrid_layer_is_the_sum_of_its_parts():
    multipliers = {"mup_multipliers": {"attention_in": 0.7, "attention_out": 1.9}}
    config = zoo_config(*VARIANTS["mamba2"], word="hybrid", **multipliers)
    layer = randomized(ZooDecoderLayer(config, 0))
    x = torch.randn(2, 6, WIDTH)
    tables = torch.randn(2, 1, 6, 10)
    mask = torch.full((6, 6), float("-inf")).triu(1).expand(2, 1, 6, 6)
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    given = {
        "position_embeddings": tuple(tables),
        "attention_mask": {"full_attention": mask, "linear_attention": padding},
    }
    with torch.no_grad():
        output = layer.mixer(x, given)
        given = {"position_embeddings": tuple(tables), "attention_mask": mask}
        attended, _ = GroupedQueryAttention.forward(layer.self_attn, x * 0.7, **given)
    expected = attended * 1.9 + run(layer.linear_attn, x, attention_mask=padding)
    assert_equal(output, expected)


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"linear_attention_type": None}, "needs linear_attention_type"),
        ({"layer_types": ["full_attention"] * 2}, "only means something with a layer of layer_types"),
        ({"linear_attention_type": "gated_delta"}, "Did you mean 'gated_delta_net'"),
        ({"linear_attention_type": ["mamba2"]}, "has 1 entries"),
        ({"linear_attention_type": [None, None]}, "needs linear_attention_type"),
        ({"linear_num_value_heads": 3, "linear_num_key_heads": 2}, "must be a multiple of linear_num_key_heads"),
        ({"linear_attn_config": {"step_norm": "rms_norm"}}, "only means something with a linear_attention_type of"),
        ({"linear_attn_config": {"decay": "bounded_sigmoid"}}, "needs a bound below 0"),
        (
            {"linear_attn_config": {"decay": "bounded_sigmoid", "lower_bound": 2.0}},
            "needs a bound below 0",
        ),
        ({"linear_attn_config": {"decay": "constant"}}, "cannot be combined"),
        ({"linear_attn_config": {"decay": "sigmoid"}}, "is not one of"),
        ({"linear_conv_kernel_dim": -1}, "too small"),
        ({"linear_attention_type": "short_conv", "linear_conv_kernel_dim": 0}, "too small"),
        ({"linear_attention_type": "mamba2", "linear_attn_config": {"time_step_limit": [0.1]}}, "must have 2 entries"),
        (
            {"linear_attention_type": "lightning_attention", "precision.linear_float32_parameters": True},
            "needs a convolution",
        ),
        ({"mup_multipliers": {"attention_in": 2.0}}, "only means something with a layer of layer_types"),
        ({"linear_attn_config": {"gate_rank": 0}}, "must be greater than 0"),
    ],
)
def test_a_contradiction_is_refused(fields, message):
    base = {"layer_types": ["linear_attention", "full_attention"], "linear_attention_type": "gated_delta_net"}
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ZooConfig(num_hidden_layers=2, **base | fields)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_says_everything_and_resolves_once(variant):
    config = zoo_config(*VARIANTS[variant])
    again = ZooConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.linear_settings(0) == config.linear_settings(0)


def test_a_product_of_one_matrix_is_the_delta_rule():
    fields = {name: SIZES | more for name, more in (("gated_delta_net", {}), ("gated_delta_product", ONE_WRITE))}
    one, other = (make_mixers(zoo_config(name, fields[name]), 0)["linear_attn"] for name in fields)
    other.load_state_dict(randomized(one).state_dict())
    x = torch.randn(2, TOKENS, WIDTH)
    assert_equal(run(other.eval(), x), run(one, x))


def test_parameters_that_stay_float32():
    fields = {"linear_attn_config": {"decay_rank": 3}, "precision.linear_float32_parameters": True}
    model = ZooForCausalLM._from_config(zoo_config("kimi_delta_attention", fields), dtype=torch.bfloat16)
    kept = {name.split("linear_attn.")[-1] for name, x in model.named_parameters() if x.dtype == torch.float32}
    assert kept == {"conv1d.weight", "A_log", "dt_bias"}


def test_layers_of_several_mechanisms():
    config = ZooConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        layer_types=["linear_attention", "conv", "linear_attention"],
        linear_attention_type=["gated_delta_net", "short_conv", "mamba2"],
        linear_num_value_heads=4,
    )
    assert [config.linear_settings(index).conv_kernel_dim for index in range(3)] == [4, 3, 4]
    assert config.linear_settings(0).qk_norm == "l2" and config.linear_settings(2).qk_norm is None
    mixers = [make_mixers(config, index)["linear_attn"] for index in range(3)]
    assert [type(mixer) for mixer in mixers] == [LINEAR_MIXERS[name] for name in config.linear_attention_type]


def test_a_cache_of_attention_layers_is_refused():
    mixer = mixer_of("gated_delta_net")
    cache = DynamicCache(config=ZooConfig(num_hidden_layers=2))
    with pytest.raises(ValueError, match="holds no recurrent state"):
        run(mixer, torch.randn(1, 2, WIDTH), cache)
