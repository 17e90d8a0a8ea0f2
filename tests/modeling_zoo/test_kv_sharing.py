"""Layers that read the keys and values of an earlier one: the same as being handed them, and nothing is cached."""

import json

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from random_models import build as build_theirs
from random_models import randomize, their_class_config
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, Gemma4ForCausalLM, StaticCache, cache_utils

from configuration_zoo import ZooConfig
from conversion import convert, family_of, import_config
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
SHARED = {**SIZES, "num_hidden_layers": 5, "num_kv_shared_layers": 2}
VARIANTS = {
    "windows": {"layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL], "sliding_window": 4},
    "chunks and sinks": {
        "layer_types": [FULL, CHUNKED, CHUNKED, FULL, CHUNKED], "attention_chunk_size": 4, "attention_sinks": "all",
    },
    "biases": {"attention_bias": True, "qk_norm": "rms_norm", "value_norm": True, "clip_qkv": 1.5},
    "distances": {"position_embedding_type": "alibi", "attn_output_gate": "headwise"},
    "patterns": {
        "position_embedding_type": "alibi", "sparse_attention_pattern": ["none"] * 3 + ["strided", "fixed"],
        "sparse_attention_stride": 3,
    },
    "widths": {
        "layer_types": [SLIDING, FULL, FULL, SLIDING, FULL], "sliding_window": 4,
        "per_layer_config": {i: {"head_dim": 20, "num_key_value_heads": 3} for i in (1, 2, 4)},
    },
}  # fmt: skip
# Layers 3 and 4 read the last one of their word before layer 3.
SOURCES = {"windows": [2, 1], "chunks and sinks": [0, 2], "biases": [2, 2], "distances": [2, 2], "widths": [0, 2]}
SOURCES["patterns"] = [2, 2]


def build(variant, **flags):
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**{**SHARED, **VARIANTS[variant], **flags})).eval()
    randomize(model)
    model.generation_config.eos_token_id = None
    return model


def handed_over(shared, variant):
    """A model with keys and values in every layer and the weights of `shared`, whose last two layers are made to
    return what their sources computed."""
    model = build(variant, num_kv_shared_layers=0)
    model.load_state_dict(shared.state_dict(), strict=False)
    mixers = [layer.self_attn for layer in model.model.layers]
    computed = {}

    def keep(index):
        compute = mixers[index].keys_and_values

        def keys_and_values(*inputs):
            computed[index] = compute(*inputs)
            return computed[index]

        mixers[index].keys_and_values = keys_and_values

    for index in range(3):
        keep(index)
    for index, source in zip((3, 4), SOURCES[variant], strict=True):
        mixers[index].keys_and_values = lambda *inputs, source=source: computed[source]
    return model


@pytest.fixture
def tokens():
    return torch.randint(1, 101, (2, 13), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_as_being_handed_the_keys(variant, tokens):
    model = build(variant)
    reference = handed_over(model, variant)
    for one in (model, reference):
        one(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name)
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert "model.layers.2.self_attn.k_proj" in names
    assert not names & {f"model.layers.{i}.self_attn.{x}" for i in (3, 4) for x in ("k_proj", "v_proj", "k_norm")}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_way_to_generate_agrees(variant, tokens):
    model = build(variant)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    expected = model.generate(**inputs, use_cache=False, **options)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert torch.equal(model.generate(**inputs, cache_implementation="static", **options), expected)
    assert torch.equal(model.generate(**inputs, prefill_chunk_size=5, **options), expected)
    beams = model.generate(**inputs, num_beams=3, use_cache=False, **options)
    assert torch.equal(model.generate(**inputs, num_beams=3, **options), beams)


@torch.no_grad()
def test_a_sharing_layer_caches_nothing_and_inspect_says_so(tokens):
    model = build("windows")
    cache = DynamicCache(config=model.config)
    held = []
    for index in range(3):
        model(tokens[:1, index : index + 1], past_key_values=cache)
        held.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers[:3]))
    # An older transformers has no layer without a cache: there the last two stay empty.
    if DummyLayer := getattr(cache_utils, "DummyLayer", None):
        assert [isinstance(layer, DummyLayer) for layer in cache.layers] == [False] * 3 + [True] * 2
        assert sum(isinstance(layer, DummyLayer) for layer in StaticCache(model.config, max_cache_len=16).layers) == 2
    model.config.dtype = torch.float32
    report = measure(model.config)
    per_token = held[1] - held[0]
    assert sum(layer["cache_bytes_per_token"] for layer in report["layers"]) == per_token == held[2] - held[1]
    assert report["embedding_parameters"] == 2 * 101 * 48
    model.config.hidden_size_per_layer_input = model.config.vocab_size_per_layer_input = 11
    assert measure(model.config)["embedding_parameters"] == 2 * 101 * 48 + 11 * 5 * 11
    assert [layer["cache_bytes_per_token"] > 0 for layer in report["layers"]] == [True] * 3 + [False] * 2
    assert report["layers"][3]["mixer"] == "shared_key_value 6/2 x 12 of layer 2"
    # Two windows of four tokens, the last of which is not cached yet, one layer that sees all 64.
    assert report["cache_bytes_per_token"] == per_token // 3
    assert report["cache_bytes_at_full_length"] == per_token // 3 * (3 + 64 + 3)


def test_checkpointing_changes_no_gradient_and_the_form_that_would_is_refused(tokens):
    model = build("windows").train()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model(tokens, labels=tokens, use_cache=False).loss.backward()


def test_a_layer_on_its_own_says_what_it_lacks():
    layer = build("windows").model.layers[3]
    with pytest.raises(ValueError, match="shared_key_values"):
        layer(torch.zeros(1, 2, 48))


REFUSED = {
    "all layers": ({"num_kv_shared_layers": 5}, "below num_hidden_layers=5"),
    "no source": ({"layer_types": [FULL] * 4 + [SLIDING], "sliding_window": 4}, "keeps keys and values is 'sliding"),
    "latent": ({"attention_type": "latent"}, "attention_type='grouped_query'"),
    "recurrence": (
        {"layer_types": [FULL] * 3 + ["linear_attention"] * 2, "linear_attention_type": "delta_net"},
        "got 'linear_attention'",
    ),
    "distances": ({"position_embedding_type": "transformer_xl"}, "other than 'transformer_xl'"),
    "rotation": ({"no_rope_layers": [1, 1, 0, 1, 1]}, "no_rope_layers"),
    "width": ({"per_layer_config": {4: {"head_dim": 20}}}, r"\[2, 20, 20\] in layer 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_field(case):
    flags, sentence = REFUSED[case]
    with pytest.raises(StrictDataclassError, match="num_kv_shared_layers") as error:
        ZooConfig(**{**SHARED, **flags})
    assert pytest.raises(ValueError, match=sentence).matches(error.value.__cause__)


def test_maps_to_keys_that_no_layer_uses_come_back(tmp_path):
    """Published files hold them for sharing layers."""
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    family = family_of("gemma4_text")
    config = their_class_config("gemma4_text", family, family.tiny[1])
    build_theirs(config, family).save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.4.self_attn.k_proj.weight"
    assert name not in tensors and "model.layers.1.self_attn.k_proj.weight" in tensors
    save_file(tensors | {name: torch.randn(16, 48)}, source / "model.safetensors", {"format": "pt"})
    convert(source, zoo, progress=False)
    convert(zoo, back, to="gemma4_text", progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert sorted(before) == sorted(after) and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_prompt_whose_last_logit_counts_runs_one_query_through_sharing_layers(variant, backend, padded, tokens):
    model = build(variant, hidden_size_per_layer_input=7)
    if backend == "eager" or variant not in ("chunks and sinks", "distances"):
        model.set_attn_implementation(backend)
    mask = torch.ones_like(tokens)
    mask[0, : 3 * padded] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": True}
    lengths = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    found = model(**inputs, logits_to_keep=1)
    assert lengths == [13, 13, 13, 1, 1]
    expected = model(**inputs)
    assert lengths[5:] == [13] * 5
    torch.testing.assert_close(found.logits, expected.logits[:, -1:], rtol=1e-5, atol=1e-5)
    following = [model(tokens[:, :1], past_key_values=one.past_key_values).logits for one in (found, expected)]
    torch.testing.assert_close(*following, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_recorded_is_recorded_whole(tokens):
    model = build("windows")
    model.set_attn_implementation("eager")
    options = {"logits_to_keep": 1, "output_hidden_states": True, "output_attentions": True}
    outputs = model(tokens, **options)
    assert {state.shape[1] for state in outputs.hidden_states} == {13}
    assert {weights.shape[2] for weights in outputs.attentions} == {13}
    torch.testing.assert_close(outputs.logits, model(tokens).logits[:, -1:], rtol=1e-5, atol=1e-5)


@pytest.mark.long
@torch.no_grad()
def test_a_compiled_token_is_one_graph():
    model = build("windows", hidden_size_per_layer_input=7)
    tokens = torch.randint(1, 101, (2, 10))
    cache = StaticCache(model.config, max_cache_len=16)
    model(tokens[:, :9], past_key_values=cache, use_cache=True)
    step = torch.compile(model.forward, backend="eager", fullgraph=True)
    found = step(tokens[:, 9:], past_key_values=cache, position_ids=torch.tensor([[9]]), use_cache=True).logits
    torch.testing.assert_close(found, model(tokens).logits[:, 9:], rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_model_of_published_size_has_the_original_number_of_parameters():
    words = ["sliding_attention"] * 4 + ["full_attention"]
    config = their_class_config("gemma4_text", family_of("gemma4_text"), {
        "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8,
        "num_key_value_heads": 1, "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "layer_types": words * 7,
    })  # fmt: skip
    raw = json.loads(config.to_json_string())
    with torch.device("meta"):
        theirs, ours = Gemma4ForCausalLM(config), ZooForCausalLM(import_config(raw))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    # Twelve windows and three full layers of one key and one value each, in two bytes.
    assert measure(import_config(raw))["cache_bytes_per_token"] == 2 * 2 * (12 * 256 + 3 * 512)
