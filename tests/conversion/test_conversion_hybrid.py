"""Families with recurrent layers: what their caches do and hold, and the files their makers write."""

import json
from inspect import signature

import pytest
import torch
from checkpoint_checks import (
    LEAKS_PADDING,
    LOSES_DIGITS,
    RELATIVE,
    assert_same_config,
    assert_same_tensors,
    batch,
    noise,
    tensors_of,
)
from layer_pairs import variants
from places import CONFIGS
from random_models import build, randomize, their_class_config
from safetensors.torch import load_file, save_file
from samples import every, only
from transformers import AutoModelForCausalLM, DynamicCache

from conversion import convert, export_config, family_of, import_config, load
from conversion.engine.config_bridge import their_config as their_config_of
from description_zoo.measure import held_bytes, measure
from modeling_zoo import ZooForCausalLM

VARIANTS = variants(lambda config: config.linear_attention_type is not None)
FIRST = [variant for variant in VARIANTS if variant[1] == 0]
# Its class keeps the state of a linear layer in a cache of its own kind, which it makes itself.
OWN_CACHE = {"minimax"}


def assert_close(found, expected, relative=RELATIVE):
    assert (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.fixture(
    params=only(FIRST, VARIANTS),
    ids=lambda variant: f"{variant[0]}-{variant[1]}",
)
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


@pytest.mark.sampled(2)
def test_any_split_of_a_sequence_gives_the_same(variant):
    """In float64, where sums in another order do not hide a mistake."""
    model = random_zoo(*variant).double()
    model.set_experts_implementation("eager")
    tokens = torch.randint(1, 101, (2, 75))
    with torch.no_grad():
        expected = model(tokens).logits
    for sizes in ([4, 1, 1, 69], [66, 2, 7], [1] * 9 + [66]):
        assert_close(in_pieces(model, tokens, sizes), expected, 1e-6)


@pytest.mark.sampled(2)
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
    if family_of(name).config_class:
        # The slow reference of the tests keeps nothing: the whole at once is what steps must come to.
        with torch.no_grad():
            expected = theirs(tokens).logits
        assert_close(in_pieces(ours, tokens, (9, 1, 1, 1, 1)), expected)
        return
    cache = None if name in OWN_CACHE else DynamicCache(config=theirs.config)
    expected, start = [], 0
    for size in (9, 1, 1, 1, 1):
        outputs = run(theirs, tokens[:, start : start + size], cache, start)
        # RecurrentGemma returns none: its attention fills the one it was given, as Mamba's models do.
        cache, start = outputs.get("past_key_values", cache), start + size
        expected.append(outputs.logits)
    found, expected = in_pieces(ours, tokens, (9, 1, 1, 1, 1)), torch.cat(expected, dim=1).float()
    if (found - expected).abs().max() > RELATIVE * expected.abs().max():
        assert_close(found, expected, 4 * noise(theirs, tokens))


# MiniMax rounds its decays and states, RecurrentGemma its gates: there zoo is the more exact one.
ROUNDS_ALIKE = ("bailing_hybrid", "kimi_linear", "lfm2", "lfm2_moe", "olmo_hybrid", "qwen3_5_text", "qwen3_next")


@pytest.mark.parametrize("name", every(3, ROUNDS_ALIKE))
def test_bfloat16_is_rounded_where_theirs_is(name, tmp_path):
    """What is left between the two, if anything, is a tenth of what rounding does to either."""
    family = family_of(name)
    original = build(their_config(name, 0), family, torch.bfloat16)
    original.save_pretrained(tmp_path)
    theirs = type(original).from_pretrained(tmp_path, attn_implementation="eager")
    ours, exact = load(tmp_path), load(tmp_path, dtype="float32").double()
    ours.set_attn_implementation("eager")
    # The fused one wants other widths than these in bfloat16, and no float64 at all.
    for model in (ours, exact, *([theirs] if ours.config.num_experts else [])):
        model.set_experts_implementation("eager")
    tokens = torch.randint(1, 101, (2, 17))
    with torch.no_grad():
        found, expected, truth = (model(tokens, use_cache=False).logits.double() for model in (ours, theirs, exact))
    assert (found - expected).abs().mean() <= 0.1 * (expected - truth).abs().mean()


@pytest.mark.sampled(2)
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
        kept = [min(length, window if "window" in row["context"] else length) for row in layers]
        expected = [
            row["state_bytes"] + row["cache_bytes_per_token"] * tokens for row, tokens in zip(layers, kept, strict=True)
        ]
        assert [held_bytes(layer) for layer in cache.layers] == expected
    # One more token, whose write waits.
    with torch.no_grad():
        model(tokens[:, :1], past_key_values=cache)
    assert [bytes_beside_state(layer) for layer in cache.layers] == [row["workspace_bytes"] for row in layers]


def bytes_beside_state(layer):
    """Bytes of all memory that deferred states reach, but for the states and single numbers."""
    found = {}

    def visit(part):
        if isinstance(part, torch.Tensor):
            found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        elif isinstance(part, (list, tuple)):
            for inner in part:
                visit(inner)

    for deferred in getattr(layer, "deferred", {}).values():
        singles = ("floor", "scale_tensor", "shortest")
        visit([part for name, part in vars(deferred).items() if name not in singles])
        found.pop(deferred.state.data_ptr())
    return sum(found.values())


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


# Configs as their makers write them, with the keys that only their own code reads; LFM2's count is published.
PUBLISHED = {
    "LFM2-350M": (354_483_968, {
        "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 1024, "block_ff_dim": 6656,
        "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5, "block_use_swiglu": True,
        "conv_L_cache": 3, "conv_bias": False, "conv_dim": 1024, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "hidden_size": 1024, "norm_eps": 1e-5, "num_attention_heads": 16, "num_heads": 16, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "rope_theta": 1e6, "tie_embedding": True, "vocab_size": 65536,
    }),
    "Kimi-Linear-48B-A3B": (None, {
        "model_type": "kimi_linear", "first_k_dense_replace": 1, "head_dim": 72, "hidden_size": 2304,
        "intermediate_size": 9216, "kv_lora_rank": 512, "mla_use_nope": True, "moe_intermediate_size": 1024,
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32,
            "kda_layers": [layer for layer in range(1, 27) if layer % 4], "short_conv_kernel_size": 4,
        },
        "moe_layer_freq": 1, "moe_renormalize": True, "num_attention_heads": 32, "num_expert_group": 1,
        "num_experts": 256, "num_experts_per_token": 8, "num_hidden_layers": 27, "num_shared_experts": 1,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_theta": 10000.0,
        "routed_scaling_factor": 2.446, "topk_group": 1, "v_head_dim": 128, "vocab_size": 163840,
    }),
    "RecurrentGemma-2B": (None, {
        "model_type": "recurrent_gemma", "_block_types": ["recurrent", "recurrent", "attention"],
        "attention_window_size": 2048, "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": True, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560, "intermediate_size": 15360,
        "logits_soft_cap": 30.0, "lru_width": 2560, "num_attention_heads": 10, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "vocab_size": 256000,
    }),
    "Ling-3.0-flash": (None, {
        "model_type": "bailing_hybrid", "num_hidden_layers": 42, "hidden_size": 2560, "vocab_size": 157184,
        "first_k_dense_replace": 2, "intermediate_size": 6144, "num_attention_heads": 32, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": 128,
        "gated_attention_proj_granularity_type": "head_wise", "rope_theta": 6000000, "rope_interleave": True,
        "short_conv_kernel_size": 4, "no_kda_lora": True, "kda_safe_gate": True, "kda_lower_bound": -5.0,
        "num_experts": 512, "num_experts_per_tok": 8, "num_shared_experts": 1, "layer_group_size": 6,
    }),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_size_has_the_original_number_of_parameters(model):
    published, raw = PUBLISHED[model]
    theirs = their_config_of(raw, raw["model_type"], family_of(raw["model_type"]))
    with torch.device("meta"):
        original, config = AutoModelForCausalLM.from_config(theirs), import_config(raw)
        ours = ZooForCausalLM(config)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in original.parameters())
    assert count == published or published is None
    assert export_config(config, raw["model_type"]) == raw


@pytest.mark.parametrize("name", every(2, ["qwen3.5-27b", "maxtext-qwen3-next-80b-a3b"]))
def test_inspect_of_a_published_hybrid(name):
    """Against its paper's numbers: a float32 matrix per value head, the window of the convolution, two vectors per key
    head and token."""
    config = import_config(json.loads((CONFIGS / f"{name}.json").read_text()))
    config.dtype = torch.bfloat16
    keys, values = (getattr(config, f"linear_num_{kind}_heads") * 128 for kind in ("key", "value"))
    states = {
        "linear_attention": (0, 4 * values * 128 + 2 * 4 * (2 * keys + values)),
        "full_attention": (2 * 2 * config.num_key_value_heads * config.head_dim, 0),
    }
    layers = measure(config)["layers"]
    assert [row["layer_type"] for row in layers] == config.layer_types
    assert [(row["cache_bytes_per_token"], row["state_bytes"]) for row in layers] == [
        states[word] for word in config.layer_types
    ]


def test_ling_with_a_rank_for_its_queries():
    """Ling 3.0 tiny has one, which transformers' class does not know."""
    raw = their_config("bailing_hybrid", 0).to_dict() | {"q_lora_rank": 24}
    assert import_config(raw).q_lora_rank == 24
    assert export_config(import_config(raw), "bailing_hybrid") == raw


def test_the_variants_that_leak_padding_do_so_in_transformers():
    """Else they would be compared with less than they could be."""
    for name, index in LEAKS_PADDING & set(VARIANTS):
        theirs = build(their_config(name, index), family_of(name))
        inputs = batch(101)
        with torch.no_grad():
            found, expected = theirs(**inputs).logits[:1, 4:], theirs(inputs["input_ids"][:1, 4:]).logits
        assert (found - expected).abs().max() > 1e-3 * expected.abs().max()
