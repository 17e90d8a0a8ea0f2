"""`upgrade_cache`: what it replaces, and that transformers' own models generate the same tokens with it."""

import copy
from functools import cache as remember

import pytest
import torch
from samples import every
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    MistralConfig,
    QuantizedCache,
    StaticCache,
)
from transformers import cache_utils as theirs

from modeling_zoo import cache_storage
from modeling_zoo.cache_counting import CountingRecurrentLayer
from modeling_zoo.cache_growing import GrowingLayer, LatentLayer
from modeling_zoo.cache_hybrid import RecurrentAndGrowingLayer, RecurrentAndSlidingLayer, RecurrentAndStaticLayer
from modeling_zoo.cache_indexed import IndexedLatentLayer, IndexedLayer
from modeling_zoo.cache_quantized import QuantizedGrowingLayer, QuantizedLatentLayer, QuantizedSlidingLayer
from modeling_zoo.cache_recurrent import RecurrentLayer
from modeling_zoo.cache_sliding import SlidingLatentLayer, SlidingLayer
from modeling_zoo.cache_static import StaticIndexedLatentLayer, StaticLatentLayer
from modeling_zoo.cache_static_sliding import StaticSlidingLayer
from modeling_zoo.cache_upgrade import LATENT_LAYERS, PLAIN_LAYERS, QUANTIZED_LAYERS, advance_cache, upgrade_cache


@pytest.fixture(autouse=True, scope="module")
def in_place():
    """The tensors of these tests are small, and would all be concatenated: here they are written in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_storage, "CONCATENATED_BYTES", 0)
        yield


WORDS = [
    "full_attention",
    "sliding_attention",
    "indexed_attention",
    "linear_attention",
    "conv",
    "hybrid",
    "hybrid_sliding",
    "chunked_attention",
]


def config_of(words=WORDS, **fields):
    """A config of any class carries the words; `attention_type` is the flag zoo's own has."""
    config = LlamaConfig(num_hidden_layers=len(words), hidden_size=8, num_attention_heads=2)
    config.layer_types, config.sliding_window, config.attention_chunk_size = list(words), 5, 6
    config.kv_lora_rank, config.qk_rope_head_dim = 6, 4
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def dynamic_cache(words=WORDS, **fields):
    """DynamicCache(config), also where this version of transformers lacks a word."""
    mapping = {**theirs.DYNAMIC_LAYER_TYPE_MAPPING, "indexed_attention": theirs.DynamicIndexedLayer}
    options = {"sliding_attention": 5, "hybrid_sliding": 5, "chunked_attention": 6}
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [mapping[word](**({"sliding_window": options[word]} if word in options else {})) for word in words]
    return cache


def kinds(cache):
    return [type(layer) for layer in cache.layers]


def test_layers_by_word_and_flag():
    plain = upgrade_cache(dynamic_cache(), config_of())
    assert kinds(plain) == [
        GrowingLayer,
        SlidingLayer,
        IndexedLayer,
        RecurrentLayer,
        RecurrentLayer,
        RecurrentAndGrowingLayer,
        RecurrentAndSlidingLayer,
        SlidingLayer,
    ]
    assert [layer.sliding_window for layer in (plain.layers[1], plain.layers[6], plain.layers[7])] == [5, 5, 6]
    latent = upgrade_cache(dynamic_cache(), config_of(attention_type="latent"))
    assert kinds(latent)[:3] == [LatentLayer, SlidingLatentLayer, IndexedLatentLayer]
    assert kinds(latent)[3:6] == kinds(plain)[3:6]
    eight = upgrade_cache(dynamic_cache(), config_of(), quantized=True)
    assert kinds(eight)[:2] == [QuantizedGrowingLayer, QuantizedSlidingLayer] and kinds(eight)[3] is RecurrentLayer


def test_static_layers_by_word_and_flag():
    words = ["full_attention", "sliding_attention", "linear_attention", "hybrid"]
    plain = StaticCache(config_of(words), max_cache_len=9)
    before = kinds(plain)
    assert kinds(upgrade_cache(plain, config_of(words))) == [
        before[0],
        StaticSlidingLayer,
        RecurrentLayer,
        RecurrentAndStaticLayer,
    ]
    latent = upgrade_cache(
        StaticCache(config_of(words[:1]), max_cache_len=9), config_of(words[:1], attention_type="latent")
    )
    assert kinds(latent) == [StaticLatentLayer] and latent.get_max_length() == 9
    assert (latent.layers[0].latent_dim, latent.layers[0].rope_dim) == (6, 4)
    latent.layers = [theirs.StaticIndexedLayer(max_cache_len=9)]
    assert kinds(upgrade_cache(latent, config_of(words[:1], attention_type="latent"))) == [StaticIndexedLatentLayer]


def test_layers_that_differ_by_their_own_config():
    config = config_of(["full_attention"] * 3, attention_type="grouped_query")
    per_layer = [copy.deepcopy(config) for _ in range(3)]
    per_layer[1].attention_type = "latent"

    class Mixed:
        layer_types, per_layer_config = config.layer_types, per_layer

    cache = upgrade_cache(dynamic_cache(["full_attention"] * 3), Mixed())
    assert kinds(cache) == [GrowingLayer, LatentLayer, GrowingLayer]


def test_a_second_call_changes_nothing():
    cache = upgrade_cache(dynamic_cache(), config_of())
    before = list(cache.layers)
    assert upgrade_cache(cache, config_of()) is cache
    assert all(now is then for now, then in zip(cache.layers, before, strict=True))


def test_filled_and_foreign_layers_are_left_alone():
    class Foreign(theirs.DynamicLayer):
        """Somebody else's."""

    cache = dynamic_cache(["full_attention", "full_attention", "linear_attention"])
    cache.layers.append(Foreign())
    cache.update(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), 0)
    cache.update_conv_state(torch.randn(1, 2, 3), 2)
    before = list(cache.layers)
    upgrade_cache(cache, config_of(["full_attention"] * 4))
    assert kinds(cache) == [theirs.DynamicLayer, GrowingLayer, theirs.LinearAttentionLayer, Foreign]
    assert [now is then for now, then in zip(cache.layers, before, strict=True)] == [True, False, True, True]


def test_other_things_are_passed_through():
    config = config_of(["full_attention"])
    assert upgrade_cache(None, config) is None
    both = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    assert upgrade_cache(both, config) is both and kinds(both.self_attention_cache) == [theirs.DynamicLayer]
    eight = QuantizedCache("fp8", config) if hasattr(theirs, "Fp8QuantizedLayer") else None
    if eight is not None:
        assert kinds(upgrade_cache(eight, config)) == [theirs.Fp8QuantizedLayer]


def test_recording_is_taken_over():
    cache = dynamic_cache()
    cache.activate_past_recording()
    upgrade_cache(cache, config_of())
    recorded = [getattr(layer, "record_past", None) for layer in cache.layers]
    assert recorded == [None, True, None, True, True, True, True, True]
    # As generate does when it hands a cache back; both halves of a hybrid layer must hear it.
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = False
    assert cache.layers[6].attention.record_past is False


def test_a_cache_without_a_config_grows_our_layers():
    for config, kind in (
        (config_of(["full_attention"]), GrowingLayer),
        (config_of(["full_attention"], attention_type="latent"), LatentLayer),
    ):
        cache = upgrade_cache(DynamicCache(), config)
        cache.update(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), 2)
        assert kinds(cache) == [kind] * 3


def test_a_cache_of_recurrent_layers_alone_counts():
    words = ["linear_attention", "conv"]
    cache = upgrade_cache(dynamic_cache(words), config_of(words))
    assert kinds(cache) == [CountingRecurrentLayer, RecurrentLayer]
    layers = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    advance_cache(cache, torch.zeros(1, 3, 5), layers)
    advance_cache(cache, torch.zeros(1, 1, 5), layers)
    assert cache.get_seq_length() == 4
    static = upgrade_cache(StaticCache(config_of(words), max_cache_len=4), config_of(words))
    assert isinstance(static.get_seq_length(), torch.Tensor)
    mixed = upgrade_cache(dynamic_cache(["linear_attention", "full_attention"]), config_of(words))
    advance_cache(mixed, torch.zeros(1, 3, 5), layers)
    advance_cache(None, torch.zeros(1, 3, 5), layers)
    assert mixed.get_seq_length() == 0


def test_nothing_is_registered():
    ours = {*PLAIN_LAYERS.values(), *LATENT_LAYERS.values(), *QUANTIZED_LAYERS.values(), CountingRecurrentLayer}
    for mapping in (theirs.DYNAMIC_LAYER_TYPE_MAPPING, theirs.STATIC_LAYER_TYPE_MAPPING):
        assert not ours & set(mapping.values())
    assert all(layer._layer_type is None for layer in ours if hasattr(layer, "_layer_type"))


# -- transformers' own models ---------------------------------------------------------------------------------------

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# model_type -> fields. Prompts of 11 tokens and 16 more lie on both sides of every window.
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 7, "head_dim": 8, "query_pre_attn_scalar": 8},
    "deepseek_v3": LATENT,
    # Scores of few index heads tie at zero, and picks among ties are arbitrary.
    "deepseek_v32": {**LATENT, "index_n_heads": 32, "index_head_dim": 8, "index_topk": 4},
    "qwen3_next": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 2,
        "mamba_d_state": 6,
        "mamba_chunk_size": 8,
        "head_dim": 8,
    },
}
# What transformers' own layers allow.
ROLLS_BACK = [name for name in MODELS if name not in ("qwen3_next", "falcon_h1")]
NEW_LAYERS = {
    "llama": {GrowingLayer},
    "mistral": {SlidingLayer},
    "gemma2": {SlidingLayer, GrowingLayer},
    "deepseek_v3": {LatentLayer},
    "deepseek_v32": {IndexedLatentLayer},
    "qwen3_next": {RecurrentLayer, GrowingLayer},
    "lfm2": {RecurrentLayer, GrowingLayer},
    "falcon_h1": {RecurrentAndGrowingLayer},
}


@remember
def model_of(name, seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**COMMON, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that the next token depends on the whole context, not on the last token alone.
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def flags_of(model):
    """The model's config with zoo's flag on it."""
    config = copy.deepcopy(model.config)
    config.attention_type = "latent" if getattr(config, "kv_lora_rank", None) else "grouped_query"
    return config


def prompt(rows, padding=0):
    torch.manual_seed(5)
    ids = torch.randint(2, 97, (rows, 11))
    mask = torch.ones_like(ids)
    if padding:
        ids[0, :padding], mask[0, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(name, upgraded, rows=2, padding=0, **options):
    """Tokens and raw logits of a generation from a fresh cache."""
    model = model_of(name)
    cache = DynamicCache(config=model.config)
    if upgraded:
        upgrade_cache(cache, flags_of(model))
        assert set(kinds(cache)) >= NEW_LAYERS[name]
        assert all(type(layer).__module__.startswith("modeling_zoo") for layer in cache.layers)
    out = model.generate(
        **prompt(rows, padding),
        past_key_values=cache,
        max_new_tokens=16,
        return_dict_in_generate=True,
        output_logits=True,
        do_sample=False,
        **options,
    )
    return out.sequences, torch.stack(out.logits) if out.logits else None


def assert_same_generation(name, rows=2, plain_options=None, **options):
    ours = generated(name, True, rows, **options)
    plain = generated(name, False, rows, **(options if plain_options is None else plain_options))
    assert torch.equal(ours[0], plain[0])
    assert len(set(plain[0][0, 11:].tolist())) > 3, "a constant answer would prove nothing"
    if plain[1] is not None:
        torch.testing.assert_close(ours[1], plain[1], rtol=1e-4, atol=1e-4)


MODES = {
    "greedy": {},
    "padded": {"padding": 4},
    "beams": {"num_beams": 3},
    "chunked_prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", every(2, MODES))
@pytest.mark.parametrize("name", MODELS)
def test_generation_is_the_same(name, mode):
    assert_same_generation(name, **MODES[mode])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ROLLS_BACK)
def test_prompt_lookup_is_greedy(name):
    assert_same_generation(name, rows=1, plain_options={}, prompt_lookup_num_tokens=3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ROLLS_BACK)
def test_assisted_generation_is_greedy(name):
    """The assistant's head is a disturbed copy, so some drafts are rejected; its cache records from the start."""
    assistant = copy.deepcopy(model_of(name))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in assistant.lm_head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    prepare = assistant._prepare_cache_for_generation

    def prepare_ours(generation_config, model_kwargs, *arguments, **options):
        prepare(generation_config, model_kwargs, *arguments, **options)
        upgrade_cache(model_kwargs["past_key_values"], flags_of(assistant))

    assistant._prepare_cache_for_generation = prepare_ours
    assert_same_generation(name, rows=1, plain_options={}, assistant_model=assistant)


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_goes_on_in_the_same_cache(name):
    """A second turn of several tokens over the cache of the first."""
    model, ids = model_of(name), prompt(1)["input_ids"]
    plain, ours = DynamicCache(config=model.config), DynamicCache(config=model.config)
    upgrade_cache(ours, flags_of(model))
    with torch.no_grad():
        for part in (ids, ids[:, :1], ids[:, 3:9], ids[:, :2]):
            want, got = (model(part, past_key_values=cache).logits for cache in (plain, ours))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_eight_bits_stay_near(name):
    model, flags, ids = model_of(name), flags_of(model_of(name)), prompt(2)["input_ids"]
    want, got = [], []
    for logits, cache in (
        (want, DynamicCache(config=model.config)),
        (got, upgrade_cache(DynamicCache(config=model.config), flags, quantized=True)),
    ):
        with torch.no_grad():
            for part in (ids, ids[:, :1], ids[:, :4]):
                logits.append(model(part, past_key_values=cache).logits)
    assert {QuantizedGrowingLayer, QuantizedLatentLayer} & set(kinds(cache))
    for mine, other in zip(got, want, strict=True):
        error = (mine - other).norm() / other.norm()
        assert 0 < error < 0.05


def synchronising_calls(function):
    """Names of the operators that make the host wait for the device, as `function` runs them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    waits = ("_local_scalar_dense", "nonzero", "equal", "item", "is_nonzero")

    class Watch(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            if operator.overloadpacket.__name__ in waits:
                self.seen.append(operator.overloadpacket.__name__)
            return operator(*arguments, **(options or {}))

    with Watch() as watch, torch.no_grad():
        function()
    return watch.seen


def test_decoding_never_waits_for_the_device():
    cache = upgrade_cache(dynamic_cache(), config_of())
    latent = upgrade_cache(dynamic_cache(WORDS[:3]), config_of(attention_type="latent"))

    def decode():
        for _ in range(12):
            for index in (0, 1, 2, 5, 6, 7):
                cache.get_mask_sizes(1, index)
                cache.update(torch.randn(2, 3, 1, 4), torch.randn(2, 3, 1, 4), index)
            for index in (3, 5, 6):
                cache.update_conv_state(torch.randn(2, 3, 1), index, conv_kernel_size=4)
                cache.update_recurrent_state(torch.randn(2, 3), index)
            for index in range(3):
                latent.update(torch.randn(2, 1, 1, 6), torch.randn(2, 1, 1, 4), index)
            latent.update_indexer(torch.randn(2, 1, 3), 2)
            cache.get_seq_length()
            cache.reorder_cache(torch.tensor([1, 0]))

    assert synchronising_calls(decode) == []
    assert synchronising_calls(lambda: torch.ones(1).item()) == ["_local_scalar_dense"]


def test_mistral_has_the_window_it_says():
    """Guard of the fixtures: a window that were ignored would make the sliding rows above prove nothing."""
    assert isinstance(model_of("mistral").config, MistralConfig) and model_of("mistral").config.sliding_window == 6
