"""The recurrent mixers against transformers' own modules, and the fields that describe them."""

import pytest
import torch
import transformers
from families_linear import CASES, Theirs
from huggingface_hub.errors import StrictDataclassError
from random_mixers import TOKENS, VARIANTS, WIDTH, assert_equal, mixer_of, plain_cache, randomized, run, zoo_config
from transformers import DynamicCache
from versions import older_than

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.recurrent_hybrid import LINEAR_MIXERS, HybridMixer
from modeling_zoo.registry import make_mixer

# -- transformers' modules -----------------------------------------------------------------------------------------


# Up to transformers 5.19: one norm over all groups, or a state that a second call over the cache does not read.
MENDED_SINCE = ("mamba2", "bamba", "bamba_biases", "falcon_h1_norm_first", "falcon_h1_gate_first")


@pytest.fixture(params=CASES)
def pair(request):
    if request.param in MENDED_SINCE and older_than("5.20"):
        pytest.skip(f"transformers {transformers.__version__} has a mistake there")
    case = CASES[request.param]
    theirs = Theirs(case)
    randomized(theirs.module)
    ours = make_mixer(zoo_config(case.mechanism, case.fields), 0)
    weights = {name: x for name, x in case.weights(theirs.module.state_dict()).items() if "slope" not in name}
    ours.load_state_dict(weights, strict=True)
    return case, theirs, ours.eval()


@torch.no_grad()
def test_equals_transformers(pair):
    _, theirs, ours = pair
    x = torch.randn(2, TOKENS, WIDTH)
    assert_equal(run(ours, x), theirs(x))


@torch.no_grad()
def test_equals_transformers_over_a_cache(pair, request):
    case, theirs, ours = pair
    x = torch.randn(2, TOKENS, WIDTH)
    cuts = ((0, 7), (7, 8), (8, 9)) + (((9, 15), (15, 16)) if case.multi_token else ())
    if "zamba2" in request.node.name:
        # Theirs clamps the time steps of a prefill but not those of single tokens.
        cuts = cuts[:1]
    their_cache, our_cache = theirs.cache(), plain_cache(ours)
    for begin, end in cuts:
        part = x[:, begin:end]
        assert_equal(run(ours, part, our_cache), theirs(part, their_cache))


@torch.no_grad()
def test_equals_transformers_under_left_padding(pair):
    case, theirs, ours = pair
    if not case.left_padding:
        pytest.skip("theirs lets the padding in")
    x, mask = torch.randn(2, TOKENS, WIDTH), torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :6] = 0
    real = mask.bool()
    their_cache, our_cache = theirs.cache(), plain_cache(ours)
    given = mask.float() if "MiniMax" in type(theirs.module).__name__ else mask
    ours_out, theirs_out = run(ours, x, our_cache, attention_mask=mask), theirs(x, their_cache, given)
    assert_equal(ours_out[real], theirs_out[real])
    step = torch.randn(2, 1, WIDTH)
    if case.multi_token:
        assert_equal(run(ours, step, our_cache), theirs(step, their_cache))


# -- side by side with attention -----------------------------------------------------------------------------------


def test_hybrid_layer_is_the_sum_of_its_parts():
    mixer = mixer_of("mamba2", word="hybrid", attention_in_multiplier=0.7, attention_out_multiplier=1.9)
    assert isinstance(mixer, HybridMixer)
    x = torch.randn(2, 6, WIDTH)
    tables = torch.randn(2, 1, 6, 10)
    mask = torch.full((6, 6), float("-inf")).triu(1).expand(2, 1, 6, 6)
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    given = {
        "position_embeddings": tuple(tables),
        "attention_mask": {"full_attention": mask, "linear_attention": padding},
    }
    output = run(mixer, x, **given)
    attended = run(mixer.attention, x * 0.7, position_embeddings=tuple(tables), attention_mask=mask)
    expected = attended * 1.9 + run(mixer.recurrence, x, attention_mask=padding)
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
        ({"linear_step_norm": "rms_norm"}, "only means something with a linear_attention_type of"),
        ({"linear_decay": "bounded_sigmoid"}, "needs a bound below 0"),
        ({"linear_decay": "bounded_sigmoid", "linear_lower_bound": 2.0}, "needs a bound below 0"),
        ({"linear_decay": "constant"}, "cannot be combined"),
        ({"linear_decay": "sigmoid"}, "is not one of"),
        ({"linear_conv_kernel_dim": -1}, "too small"),
        ({"linear_attention_type": "short_conv", "linear_conv_kernel_dim": 0}, "too small"),
        ({"linear_attention_type": "mamba2", "time_step_limit": [0.1]}, "must have 2 entries"),
        ({"linear_attention_type": "lightning_attention", "linear_float32_parameters": True}, "needs a convolution"),
        ({"attention_in_multiplier": 2.0}, "only means something with a layer of layer_types"),
        ({"linear_gate_rank": 0}, "must be greater than 0"),
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


def test_parameters_that_stay_float32():
    fields = {"linear_decay_rank": 3, "linear_float32_parameters": True}
    model = ZooForCausalLM._from_config(zoo_config("kimi_delta_attention", fields), dtype=torch.bfloat16)
    kept = {name.split("self_attn.")[-1] for name, x in model.named_parameters() if x.dtype == torch.float32}
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
    mixers = [make_mixer(config, index) for index in range(3)]
    assert [type(mixer) for mixer in mixers] == [LINEAR_MIXERS[name] for name in config.linear_attention_type]


def test_a_cache_of_attention_layers_is_refused():
    mixer = mixer_of("gated_delta_net")
    cache = DynamicCache(config=ZooConfig(num_hidden_layers=2))
    with pytest.raises(ValueError, match="holds no recurrent state"):
        run(mixer, torch.randn(1, 2, WIDTH), cache)
