"""zoo's recurrent mixers with every parameter random, one per mechanism and flag, and how tests run them."""

import torch
from transformers import DynamicCache

from configuration_zoo import ZooConfig
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.embeddings import read_positions
from modeling_zoo.recurrent_rows import create_recurrent_mask
from modeling_zoo.registry import make_mixers

WIDTH = 20
# Largest difference, relative to the largest value.
TOLERANCE = 1e-5
TOKENS = 19
SIZES = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
UNIT = {"linear_num_value_heads": 4, "linear_value_head_dim": 5}
# Every mechanism in its own default, and each further flag once.
VARIANTS = {name: (name, SIZES) for name in ("gated_delta_net", "delta_net", "linear_attention", "mamba2")}
VARIANTS |= {
    "kimi_delta_attention": (
        "kimi_delta_attention",
        SIZES | {"linear_attn_config": {"decay_rank": 3, "gate_rank": 3}},
    ),
    "gated_linear_attention": ("gated_linear_attention", SIZES),
    "lightning_attention": ("lightning_attention", SIZES),
    "mamba": ("mamba", {"linear_value_head_dim": 30, "linear_key_head_dim": 4}),
    "rg_lru": ("rg_lru", UNIT),
    "short_conv": ("short_conv", {"linear_attn_config": {"bias": True, "conv_bias": True}}),
    "gated_delta_product": ("gated_delta_product", SIZES),
    "delta_product": ("delta_product", SIZES | {"linear_attn_config": {"num_householder": 3, "bias": True}}),
    "delta_net_no_conv": (
        "delta_net",
        SIZES | {"linear_conv_kernel_dim": 0, "linear_attn_config": {"output_gate": "none"}},
    ),
    "feature_map": (
        "linear_attention",
        SIZES | {"linear_attn_config": {"feature_map": "elu_plus_one", "output_norm": "none"}},
    ),
    "per_head_bounded": (
        "gated_delta_net",
        SIZES | {"linear_attn_config": {"decay": "bounded_sigmoid", "lower_bound": -3.0}},
    ),
    "time_step_limit": (
        "mamba2",
        SIZES | {"linear_attn_config": {"time_step_limit": [0.5, 0.8], "bias": True}},
    ),
    "scan_groups": (
        "mamba",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_value_head_dim": 15, "linear_key_head_dim": 4},
    ),
    "step_norm": ("mamba", {"linear_value_head_dim": 30, "linear_attn_config": {"step_norm": "rms_norm"}}),
}


def zoo_config(mechanism, fields, word="linear_attention", **more):
    return ZooConfig(
        vocab_size=11,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=[word, "full_attention"],
        linear_attention_type=mechanism,
        attn_implementation="eager",
        **fields,
        **more,
    )


@torch.no_grad()
def randomized(module):
    """Every parameter random, gates and norms too; rates of decay within e**-2 and e**1."""
    for name, parameter in module.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(-2, 1)
        elif parameter.dim() >= 2:
            parameter.normal_(0, 1.2 / parameter.shape[-1] ** 0.5)
        else:
            parameter.normal_(0.5, 0.5)
    return module.eval()


def mixer_of(variant, **more):
    mechanism, fields = VARIANTS[variant]
    return randomized(make_mixers(zoo_config(mechanism, fields, **more), 0)["linear_attn"])


def assert_equal(ours, expected):
    assert ours.shape == expected.shape and ours.dtype == expected.dtype
    assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


def mix(mixer, x, cache=None, attention_mask=None, position_ids=None, **told):
    """The mixer under the mask that the model makes from what it is told; a cache that is still empty counts for none.

    Of a padding mask nothing is left out: all of it ones is one more case.
    """
    if attention_mask is None and (position_ids is not None or told):
        seen = cache if cache is not None and cache.layers[0].has_previous_state[0] else None
        position_ids, places = read_positions(mixer.config, x, None, seen, position_ids, **told)
        attention_mask = create_recurrent_mask(mixer.config, x, None, seen, places)
    return mixer(x, past_key_values=cache, attention_mask=attention_mask, position_ids=position_ids)[0]


def run(*args, **kwargs):
    with torch.no_grad():
        return mix(*args, **kwargs)


def plain_cache(mixer):
    return DynamicCache(config=mixer.config)


def zoo_cache(mixer):
    return upgrade_cache(DynamicCache(config=mixer.config), mixer.config)
