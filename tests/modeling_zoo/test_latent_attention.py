"""Latent attention: against transformers' own attention of every family, against the slow reference, in both forms."""

import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from layer_pairs import Pair, SideBySide, latent_layers, variants
from random_models import randomize
from references_latent import attention_calls, latent_row
from samples import every
from transformers import AttentionInterface, DynamicCache, StaticCache

from configuration_zoo import ZooConfig
from conversion.families.shared_latent import YARN
from modeling_zoo import ZooForCausalLM, ZooModel, ops_attention_latent
from modeling_zoo.cache_upgrade import upgrade_cache

# Odd and mutually different, so that no two sizes can be swapped unseen.
WIDTHS = {
    "hidden_size": 66, "num_attention_heads": 6, "kv_lora_rank": 20, "q_lora_rank": 28, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 10, "v_head_dim": 14,
}  # fmt: skip
MODEL = {"vocab_size": 31, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 100.0}
INTERLEAVED = {"rope_interleave": True}
UNRANKED = {"q_lora_rank": None}
VARIANTS = [
    (*variant, {}) for variant in variants(lambda config: "latent" in config.attentions and config.index_topk is None)
]
# Scores scaled by a rotation that is none of YaRN's.
VARIANTS.append(("deepseek_v3", 0, {"rope_parameters": YARN | {"rope_type": "linear"}}))
STEPS = ((0, 9), (9, 10), (10, 13), (13, 22), (22, 23))
LENGTH, PADDED = 23, 4


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_equals_the_attention_of_transformers(case, backend, tmp_path):
    pair = Pair(tmp_path, case[0], case[1], **case[2])
    for model in (pair.theirs, pair.ours):
        model.set_attn_implementation(backend)
    tokens, mask = torch.randint(1, 101, (2, LENGTH)), torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :PADDED] = 0
    both = SideBySide(pair, latent_layers(pair))
    for steps in (((0, LENGTH),), STEPS):
        both.forget()
        for step in steps:
            for expected, found in both.run(tokens, *step, mask):
                assert relative_error(found, expected) < 2e-6, step
        for theirs, ours in both.cached():
            assert relative_error(ours.keys, theirs.keys) < 2e-6
            assert ours.values.shape == theirs.values.shape


# -- every flag that latent attention has to do with, against the slow reference ---------------------------------------

LATENT = {**MODEL, **WIDTHS, "hidden_size": 20, "attention_type": "latent", "rope_parameters": DEFAULT}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
CHUNKED = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 5}
NO_ROPE = {"rope_parameters": None}
TEMPERATURE = {
    "attn_temperature.scale": 0.7,
    "attn_temperature.floor_scale": 3,
    "attn_temperature.offset": 1,
    "no_rope_layers": [1, 0],
}
CASES = {
    "plain": {},
    "one_query_projection": UNRANKED,
    "interleaved": INTERLEAVED,
    "lifted_rotation": {"precision.rope": "float32_qk"},
    "scaled_latents": {"mla_config.scale_q_lora": True, "mla_config.scale_kv_lora": True},
    "normed_rope_key": {"mla_config.rope_key_norm": True, "mla_config.norm_eps": 0.1},
    "normed_rope_key_unturned": NO_ROPE | {"position_embedding_type": "none", "mla_config.rope_key_norm": True},
    "shared_value_heads": {"num_key_value_heads": 2},
    "one_key_value_head": {"num_key_value_heads": 1, "attn_output_gate": "query"},
    "biases": {"attention_bias": True},
    "output_bias": {"attention_out_bias": True},
    "wide_values": {"v_head_dim": 26},
    "equal_widths": {"v_head_dim": 22},
    "other_epsilon": {"mla_config.norm_eps": 0.1},
    "gate_beside_query": {"attn_output_gate": "query"},
    "gate_elementwise": {"attn_output_gate": "elementwise"},
    "gate_headwise": {"attn_output_gate": "headwise"},
    "soft_cap": {"attn_logit_softcapping": 0.8},
    "sinks": {"attention_sinks": "all"},
    "capped_sinks_sliding": SLIDING | {"attention_sinks": "all", "attn_logit_softcapping": 1.1},
    "sliding": SLIDING,
    "chunked": CHUNKED,
    "banded": {"sparse_attention_pattern": ["banded", "none"], "sparse_attention_stride": 3},
    "both_ways": {"use_bidirectional_attention": True},
    "no_rope_layer": {"no_rope_layers": [0, 1]},
    "temperature": TEMPERATURE | {"attn_temperature.layers": "all"},
    "temperature_where_not": TEMPERATURE | {"attn_temperature.layers": "no_rope"},
    "shared_key_unturned": NO_ROPE | {"position_embedding_type": "none"},
    "no_shared_key": NO_ROPE | {"position_embedding_type": "none", "qk_rope_head_dim": 0},
    "alibi": NO_ROPE | {"position_embedding_type": "alibi", "position_config.alibi_scaled": False},
    "relative": NO_ROPE
    | {
        "position_embedding_type": "relative", "relative_attention_num_buckets": 6,
        "relative_attention_max_distance": 9,
    },
    "multiplier": {"attention_multiplier": 0.11, "scale_attn_by_inverse_layer_idx": True},
    "lifted_scores": {"precision.attention_upcast": True},
    "everything": SLIDING | TEMPERATURE
    | {
        "attn_temperature.layers": "all", "attention_sinks": "all", "attn_logit_softcapping": 2.0,
        "attn_output_gate": "headwise", "attention_bias": True, "attention_multiplier": 0.3,
        "num_key_value_heads": 3, "mla_config.scale_kv_lora": True, "rope_interleave": True,
    },
}  # fmt: skip
TOKENS, FIRST = 13, 3


def make(changes, backend="eager", kind=ZooModel):
    torch.manual_seed(0)
    model = kind(ZooConfig(**LATENT | changes, attn_implementation=backend)).eval()
    randomize(model)
    return model


def inputs():
    tokens = torch.randint(0, 31, (2, TOKENS), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[0, :FIRST] = 0
    return tokens, mask


def real(hidden):
    return torch.cat((hidden[0, FIRST:], hidden[1]))


@torch.no_grad()
def in_steps(model, steps, cache=None):
    """The last hidden states `[B, T, D]` of a sequence taken in steps over a cache."""
    tokens, mask = inputs()
    cache = DynamicCache(config=model.config) if cache is None else cache
    parts, start = [], 0
    for count in steps:
        stop = start + count
        part = model(tokens[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        parts.append(part.last_hidden_state)
        start = stop
    return torch.cat(parts, dim=1)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_reference(case):
    model = make(CASES[case])
    table = getattr(model.position_bias, "relative_attention_bias", None)
    calls = attention_calls(model, *inputs())
    assert [module.layer_idx for module, _, _ in calls] == [0, 1]
    for module, given, found in calls:
        parameters = module.state_dict()
        for row, first in enumerate((FIRST, 0)):
            slow, _ = latent_row(
                parameters, given[row], model.config, module.layer_idx, first, table and table.weight.detach()
            )
            assert relative_error(found[row, first:], slow[first:]) < 1e-5, f"layer {module.layer_idx}, row {row}"


def fused(case):
    return not {"attn_logit_softcapping", "attention_sinks"} & set(CASES[case])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in CASES if fused(case)])
def test_sdpa_equals_eager(case):
    model = make(CASES[case])
    expected = model(*inputs()).last_hidden_state
    model.set_attn_implementation("sdpa")
    assert relative_error(real(model(*inputs()).last_hidden_state), real(expected)) < 2e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("steps", [(1,) * 13, (5, 1, 1, 3, 1, 2), (2, 11)], ids=str)
@pytest.mark.parametrize("case", every(3, [case for case in CASES if case != "both_ways"]))
def test_steps_over_a_cache_equal_one_pass(case, steps):
    for backend in ("eager", "sdpa") if fused(case) else ("eager",):
        model = make(CASES[case], backend)
        tokens, mask = inputs()
        with torch.no_grad():
            expected = model(tokens, attention_mask=mask, use_cache=False).last_hidden_state
        assert relative_error(real(in_steps(model, steps)), real(expected)) < 4e-6, backend


# -- the two forms -----------------------------------------------------------------------------------------------------


def forced(monkeypatch, absorbed):
    """Takes the choice of the form away from its cost; returns the list of forms that ran."""
    ran = []
    monkeypatch.setattr(ops_attention_latent, "absorbed_is_cheaper", lambda *sizes: absorbed)
    for form in ("expanded", "absorbed"):
        plain = getattr(ops_attention_latent, form)

        def counted(*args, form=form, plain=plain):
            ran.append(form)
            return plain(*args)

        monkeypatch.setattr(ops_attention_latent, form, counted)
    return ran


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", [case for case in CASES if case != "both_ways"])
def test_both_forms_are_equal(case, monkeypatch):
    for backend in ("eager", "sdpa") if fused(case) else ("eager",):
        results = {}
        for absorbed in (False, True):
            model = make(CASES[case], backend)
            with monkeypatch.context() as patch:
                ran = forced(patch, absorbed)
                results[absorbed] = in_steps(model, (6, 1, 4, 1, 1))
            # Two layers: the first step is a prompt, which is always expanded.
            assert ran == ["expanded"] * 2 + ["absorbed" if absorbed else "expanded"] * 8
        assert relative_error(real(results[True]), real(results[False])) < 4e-6, backend


def test_gradients_of_both_forms_are_equal(monkeypatch):
    gradients = {}
    for absorbed in (False, True):
        model = make(CASES["everything"])
        tokens, mask = inputs()
        with monkeypatch.context() as patch:
            forced(patch, absorbed)
            cache = DynamicCache(config=model.config)
            model(tokens[:, :9], attention_mask=mask[:, :9], past_key_values=cache)
            output = model(tokens[:, 9:], attention_mask=mask, past_key_values=cache)
            output.last_hidden_state[1].pow(2).sum().backward()
        gradients[absorbed] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in gradients[False].items():
        if gradient is not None and gradient.abs().max() > 1e-6:
            assert relative_error(gradients[True][name], gradient) < 1e-4, name


def test_a_decoded_token_reads_latents_only(monkeypatch):
    model = make({}, "sdpa")
    cache = DynamicCache(config=model.config)
    tokens, _ = inputs()
    with torch.no_grad():
        model(tokens[:, :9], past_key_values=cache)
        monkeypatch.setattr(ops_attention_latent, "expanded", lambda *args: pytest.fail("expanded"))
        model(tokens[:, 9:10], past_key_values=cache)
        model(tokens[:, 10:13], past_key_values=cache)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["dynamic", "without config", "static", "better static"])
@pytest.mark.parametrize("case", ["plain", "sliding", "no_shared_key"])
def test_every_cache_gives_the_same(case, kind):
    model = make(CASES[case], "sdpa")
    expected = in_steps(model, (6, 1, 4, 1, 1))
    config = model.config
    cache = {
        "dynamic": lambda: upgrade_cache(DynamicCache(config=config), config),
        "without config": lambda: upgrade_cache(DynamicCache(), config),
        "static": lambda: StaticCache(config=config, max_cache_len=20),
        "better static": lambda: upgrade_cache(StaticCache(config=config, max_cache_len=20), config),
    }[kind]()
    assert relative_error(real(in_steps(model, (6, 1, 4, 1, 1), cache)), real(expected)) < 2e-6


def test_the_cache_holds_the_latents_alone():
    model = make({}, "sdpa")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs()[0], past_key_values=cache)
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, TOKENS, 20)
        assert layer.values.shape == (2, 1, TOKENS, 10)


# -- backends ----------------------------------------------------------------------------------------------------------


def test_a_registered_backend_gets_one_shared_key(monkeypatch):
    """A backend of somebody else is called like multi-query attention: keys c + r wide, values c wide."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    shapes = []

    def watched(module, query, key, value, *args, **kwargs):
        shapes.append((query.shape[1:], key.shape[1:], value.shape[1:], module.num_key_value_groups))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("watched", watched)
    AttentionMaskInterface.register("watched", sdpa_mask)
    model = make(CASES["shared_value_heads"], "sdpa")
    expected = in_steps(model, (6, 1, 4, 1, 1))
    model.set_attn_implementation("watched")
    found = in_steps(model, (6, 1, 4, 1, 1))
    assert relative_error(real(found), real(expected)) < 2e-6
    assert shapes[0] == ((6, 6, 22), (2, 6, 22), (2, 6, 14), 3)
    assert shapes[2] == ((6, 1, 30), (1, 7, 30), (1, 7, 20), 6)


@pytest.mark.parametrize("case", ["plain", "sliding"])
def test_flash_masks_are_understood(case):
    """Flash backends give 2-D padding masks, and a window instead of a mask; absorbing has to read both."""
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    model = make(CASES[case], "sdpa")
    expected = in_steps(model, (6, 1, 1, 1, 1, 1, 1, 1))

    def prompt_only(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        assert query.shape[2] == 6, "one query is read without the backend"
        keys = torch.arange(6)
        seen = (keys <= keys[:, None]) & (keys[:, None] - keys < (sliding_window or 9))
        seen = seen[None, None] & attention_mask[:, None, None].bool()
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling)
        return output.nan_to_num().transpose(1, 2), None

    AttentionInterface.register("flash_of_the_test", prompt_only)
    AttentionMaskInterface.register("flash_of_the_test", flash_attention_mask)
    model.config._attn_implementation = "flash_of_the_test"
    for cache in (None, DynamicCache()):
        found = in_steps(model, (6, 1, 1, 1, 1, 1, 1, 1), cache)
        assert relative_error(real(found), real(expected)) < 2e-6


def test_attention_weights_of_both_forms(monkeypatch):
    weights = {}
    for absorbed in (False, True):
        model = make(CASES["sinks"])
        tokens, mask = inputs()
        with monkeypatch.context() as patch, torch.no_grad():
            forced(patch, absorbed)
            cache = DynamicCache(config=model.config)
            model(tokens[:, :9], attention_mask=mask[:, :9], past_key_values=cache)
            output = model(tokens[:, 9:], attention_mask=mask, past_key_values=cache, output_attentions=True)
        weights[absorbed] = output.attentions
    for one, other in zip(*weights.values(), strict=True):
        assert one.shape == (2, 6, 4, TOKENS)
        assert relative_error(one, other) < 2e-6


# -- a flag on any config ----------------------------------------------------------------------------------------------


def test_widths_follow_from_the_head():
    config = ZooConfig(
        **{**MODEL, "hidden_size": 64, "num_attention_heads": 4, "attention_type": "latent", "kv_lora_rank": 24}
    )
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim) == (16, 8, 16)
    assert (config.q_lora_rank, config.mla_config["norm_eps"], config.qk_head_dim) == (None, 1e-6, 24)
    assert ZooConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert ZooConfig(**MODEL, hidden_size=64, num_attention_heads=4).qk_head_dim is None


LAYERS_DIFFER = {"per_layer_config": {1: {"kv_lora_rank": 12, "v_head_dim": 9, "num_key_value_heads": 2}}}


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 2}, {"block_type": "parallel"}, {"no_rope_layers": [1, 0]}, SLIDING, LAYERS_DIFFER],
    ids=str,
)
def test_a_plain_config_with_the_flag_trains_and_generates(changes):
    sizes = {**MODEL, "hidden_size": 32, "num_attention_heads": 4, "attention_type": "latent", "kv_lora_rank": 24}
    model = ZooForCausalLM(ZooConfig(**sizes | changes))
    tokens, mask = inputs()
    model.train()
    model(tokens, labels=tokens, attention_mask=mask).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    model.eval()
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "pad_token_id": 0}
    expected = model.generate(tokens, use_cache=False, **options)
    for further in (
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"prompt_lookup_num_tokens": 3},
        {"past_key_values": DynamicCache()},
    ):
        rows = (slice(1, 2),) if "prompt_lookup_num_tokens" in further else (slice(None),)
        for row in rows:
            given = options | {"attention_mask": mask[row]}
            assert torch.equal(model.generate(tokens[row], **given, **further), expected[row]), further


REFUSED = {
    "kv_lora_rank=8 only means something with attention_type='latent'": {
        "attention_type": "grouped_query", "kv_lora_rank": 8,
    },
    "it needs qk_rope_head_dim above 0 and qk_norm_config.scope='head'": {
        "qk_norm": "rms_norm", "qk_norm_config.scope": "full",
    },
    "clip_qkv=1.0 only means something with an attention_type of": {"clip_qkv": 1.0},
    "qk_rope_head_dim=0 must be an even number greater than 0": {"qk_rope_head_dim": 0},
    "qk_rope_head_dim=5 must be an even number": {"qk_rope_head_dim": 5},
    "kv_lora_rank=0 must be greater than 0": {"kv_lora_rank": 0},
    "mla_config.scale_q_lora=True needs q_lora_rank": {"mla_config.scale_q_lora": True},
    "mla_config.scale_by_mscale=True needs position_embedding_type='rope'": {
        "mla_config.scale_by_mscale": True, "position_embedding_type": "none",
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_contradictions_are_refused(message):
    sizes = {**MODEL, "hidden_size": 32, "num_attention_heads": 4, "attention_type": "latent"}
    with pytest.raises(StrictDataclassError, match=re.escape(message)):
        ZooConfig(**sizes | REFUSED[message])
