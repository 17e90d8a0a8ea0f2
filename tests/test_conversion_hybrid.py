"""Families with recurrent layers: what their caches do and hold, and the files their makers write."""

from inspect import signature

import pytest
import torch
from random_models import build, randomize, their_class_config
from safetensors.torch import load_file, save_file
from test_conversion import (
    LEAKS_PADDING,
    LOSES_DIGITS,
    RELATIVE,
    assert_same_config,
    assert_same_tensors,
    batch,
    tensors_of,
)
from transformers import AutoModelForCausalLM, DynamicCache

from conversion import convert, export_config, family_of, import_config, load
from conversion.measure import held_bytes, measure
from modeling_zoo import ZooForCausalLM

NAMES = (
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2",
    "lfm2_moe", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text",
    "qwen3_next", "recurrent_gemma", "zamba2",
)  # fmt: skip
VARIANTS = [(name, index) for name in NAMES for index in range(len(family_of(name).tiny))]
# Its class keeps the state of a linear layer in a cache of its own kind, which it makes itself.
OWN_CACHE = {"minimax"}


def assert_close(found, expected, relative=RELATIVE):
    assert (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant[0]}-{variant[1]}")
def variant(request):
    return request.param


def their_config(name, index):
    family = family_of(name)
    return their_class_config(name, family, family.tiny[index])


def random_zoo(name, index):
    model = ZooForCausalLM(import_config(their_config(name, index).to_dict())).eval()
    randomize(model)
    model.tie_weights()
    return model


def run(model, tokens, cache, start, **kwargs):
    positions = torch.arange(start, start + tokens.shape[1])[None]
    # Models of nothing but state space layers call their cache otherwise.
    name = "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
    with torch.no_grad():
        return model(tokens, **{name: cache}, position_ids=positions, use_cache=True, **kwargs)


def in_pieces(model, tokens, sizes):
    """Logits of the tokens, given piece by piece over one cache."""
    cache, start, logits = None, 0, []
    for size in sizes:
        outputs = run(model, tokens[:, start : start + size], cache, start)
        cache, start = outputs.past_key_values, start + size
        logits.append(outputs.logits)
    return torch.cat(logits, dim=1)


def test_any_split_of_a_sequence_gives_the_same(variant):
    """In float64, where sums in another order do not hide a mistake."""
    model = random_zoo(*variant).double()
    model.set_experts_implementation("eager")
    tokens = torch.randint(1, 101, (2, 75))
    with torch.no_grad():
        expected = model(tokens).logits
    for sizes in ([4, 1, 1, 69], [66, 2, 7], [1] * 9 + [66]):
        assert_close(in_pieces(model, tokens, sizes), expected, 1e-6)


def test_padding_on_the_left_changes_nothing(variant):
    model = random_zoo(*variant)
    inputs = batch(101)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(**inputs, position_ids=positions).logits[:1, 4:]
        expected = model(inputs["input_ids"][:1, 4:]).logits
    assert_close(found, expected)


def test_prefill_and_steps_are_theirs(variant, tmp_path):
    name, index = variant
    theirs = build(their_config(name, index), family_of(name))
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    if name in LOSES_DIGITS:
        theirs = theirs.double()
    tokens = batch(101, padding=0)["input_ids"]
    cache = None if name in OWN_CACHE else DynamicCache(config=theirs.config)
    expected, start = [], 0
    for size in (9, 1, 1, 1, 1):
        outputs = run(theirs, tokens[:, start : start + size], cache, start)
        # RecurrentGemma returns none: its attention fills the one it was given, as Mamba's models do.
        cache, start = outputs.get("past_key_values", cache), start + size
        expected.append(outputs.logits)
    assert_close(in_pieces(ours, tokens, (9, 1, 1, 1, 1)), torch.cat(expected, dim=1).float())


def test_the_cache_holds_what_inspect_says(variant):
    """Bytes of every layer, at two lengths, of a cache that `generate` would use."""
    model = random_zoo(*variant).to(torch.bfloat16)
    model.set_experts_implementation("eager")
    model.config.dtype = torch.bfloat16
    layers = measure(model.config)["layers"]
    for length in (3, 7):
        tokens = torch.randint(1, 101, (1, length))
        cache = run(model, tokens, None, 0).past_key_values
        # A window of w tokens needs the w - 1 before the next one.
        window = (model.config.sliding_window or length + 1) - 1
        kept = [min(length, window if "window" in row["reach"] else length) for row in layers]
        expected = [
            row["state_bytes"] + row["cache_bytes_per_token"] * tokens for row, tokens in zip(layers, kept, strict=True)
        ]
        assert [held_bytes(layer) for layer in cache.layers] == expected


def test_a_published_layout_of_olmo_hybrid(tmp_path):
    """Norms under the names of their kind of layer, the convolution cut where queries and keys end."""
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = build(their_config("olmo_hybrid", 0))
    theirs.save_pretrained(source)
    config, tensors = theirs.config, {}
    sizes = [config.linear_num_key_heads * config.linear_key_head_dim] * 2
    sizes += [config.linear_num_value_heads * config.linear_value_head_dim]
    for key, tensor in theirs.state_dict().items():
        layer = key.split(".")[2] if ".layers." in key else None
        if layer is not None and config.layer_types[int(layer)] == "linear_attention":
            key = key.replace("input_layernorm", "attention_layer_norm")
            key = key.replace("post_attention_layernorm", "feedforward_layer_norm")
        if key.endswith("conv1d.weight"):
            parts = zip("qkv", tensor.split(sizes), strict=True)
            tensors |= {key.replace("conv1d", f"{x}_conv1d"): part.clone() for x, part in parts}
        else:
            tensors[key] = tensor.clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(1, 101, (2, 13))
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)
        assert_close(load(source)(tokens).logits, theirs(tokens).logits)
    convert(source, zoo, progress=False)
    convert(zoo, back, to="olmo_hybrid", progress=False)
    assert_same_tensors(tensors_of(back), tensors)
    assert_same_config(back, source)


def test_kimi_linear_counts_layers_from_one():
    raw = their_config("kimi_linear", 0).to_dict()
    for key in ("layer_types", "mlp_layer_types", "linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"):
        del raw[key]
    raw |= {"first_k_dense_replace": 2, "linear_attn_config": {
        "head_dim": 14, "num_heads": 3, "short_conv_kernel_size": 5, "full_attn_layers": [2, 5],
        "kda_layers": [1, 3, 4],
    }}  # fmt: skip
    config = import_config(raw)
    assert [index for index, word in enumerate(config.layer_types) if word == "full_attention"] == [1, 4]
    assert config.mlp_layer_types == ["dense", "dense", "sparse", "sparse", "sparse"]
    assert (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_conv_kernel_dim) == (3, 14, 5)
    assert export_config(config, "kimi_linear") == raw


def test_minimax_that_begins_with_a_linear_layer_generates_what_it_does_without_a_cache(tmp_path):
    """transformers' own cache then counts no keys, and a step forgets the window."""
    words = ["linear_attention", "full_attention", "linear_attention"]
    family = family_of("minimax")
    theirs = build(their_class_config("minimax", family, family.tiny[1] | {"layer_types": words}))
    theirs.save_pretrained(tmp_path)
    ours, inputs = load(tmp_path), batch(101)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = theirs.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(ours.generate(**inputs, **settings), expected)
    assert not torch.equal(theirs.generate(**inputs, **settings), expected), "then the card of minimax is wrong"


def test_heads_for_further_tokens_of_qwen3_next_come_back(tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    build(their_config("qwen3_next", 0)).save_pretrained(source)
    tensors = load_file(source / "model.safetensors") | {"mtp.fc.weight": torch.randn(3, 5)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, zoo, progress=False)
    convert(zoo, back, to="qwen3_next", progress=False)
    assert_same_tensors(tensors_of(back), tensors)


def test_the_variants_that_leak_padding_do_so_in_transformers():
    """Else they would be compared with less than they could be."""
    for name, index in LEAKS_PADDING & set(VARIANTS):
        theirs = build(their_config(name, index), family_of(name))
        inputs = batch(101)
        with torch.no_grad():
            found, expected = theirs(**inputs).logits[:1, 4:], theirs(inputs["input_ids"][:1, 4:]).logits
        assert (found - expected).abs().max() > 1e-3 * expected.abs().max()
