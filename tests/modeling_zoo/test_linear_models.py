"""Whole models with recurrent layers: generation of every kind, compiled and static caches, saving, training."""

import pytest
import torch
from random_models import randomize
from samples import every
from transformers import DynamicCache
from versions import older_than

from configuration_zoo import ZooConfig
from configuration_zoo.fields_linear import LINEAR_MECHANISMS
from modeling_zoo import ZooForCausalLM

UNIT = {"linear_num_value_heads": 4, "linear_value_head_dim": 6}
SIZES = {
    name: {"linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
    for name in LINEAR_MECHANISMS
}
SIZES |= {"mamba": {"linear_value_head_dim": 30}, "rg_lru": UNIT, "short_conv": {}}
PATTERNS = {
    "alternating": ["linear_attention", "full_attention", "linear_attention"],
    "sliding": ["sliding_attention", "linear_attention", "conv"],
    "chunked": ["chunked_attention", "linear_attention", "full_attention"],
    "alone": ["linear_attention"] * 3,
    "beside": ["hybrid", "full_attention", "hybrid"],
    "beside_sliding": ["hybrid_sliding", "linear_attention", "hybrid_sliding"],
}
NEW = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def model_of(mechanism="gated_delta_net", pattern="alternating", **fields):
    words = PATTERNS[pattern]
    config = ZooConfig(
        vocab_size=29,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=36,
        max_position_embeddings=64,
        layer_types=words,
        linear_attention_type=["short_conv" if word == "conv" else mechanism for word in words],
        sliding_window=5 if any("sliding" in word for word in words) else None,
        attention_chunk_size=6 if "chunked_attention" in words else None,
        pad_token_id=0,
        **SIZES[mechanism],
        **fields,
    )
    model = ZooForCausalLM(config).eval()
    randomize(model)
    return model


def tokens(rows=2, length=9):
    return torch.randint(1, 29, (rows, length))


@pytest.fixture(params=LINEAR_MECHANISMS)
def any_mechanism(request):
    return model_of(request.param)


@pytest.fixture(params=PATTERNS)
def any_pattern(request):
    return model_of(pattern=request.param)


def generate_without_cache(model, ids, count=7, **kwargs):
    """Greedy tokens, each from a forward over everything before it."""
    mask = kwargs.pop("attention_mask", torch.ones_like(ids))
    for _ in range(count):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


def padded():
    ids, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    return ids * mask, mask


@pytest.mark.sampled(2)
def test_generation(any_mechanism):
    ids, mask = padded()
    expected = generate_without_cache(any_mechanism, ids, attention_mask=mask)
    assert torch.equal(any_mechanism.generate(ids, attention_mask=mask, **NEW), expected)


WAYS = {
    "static": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", every(2, WAYS))
def test_generation_over_every_pattern(any_pattern, way):
    ids = tokens(rows=1 if way == "prompt lookup" else 2)
    expected = generate_without_cache(any_pattern, ids)
    assert torch.equal(any_pattern.generate(ids, **NEW, **WAYS[way]), expected)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("mechanism", LINEAR_MECHANISMS)
def test_assisted_generation(mechanism):
    """Another model proposes, wrongly most of the time: every rejected token is taken back from the state."""
    model, assistant, ids = model_of(mechanism), model_of("gated_delta_net"), tokens(rows=1)
    # A proposed padding token would be masked by transformers.
    options = {**NEW, "suppress_tokens": [0]}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **options), expected)


@pytest.mark.parametrize("pattern", ["alternating", "alone", "beside"])
def test_beams(pattern):
    """Over a cache and without one, sums of log probabilities included."""
    model, (ids, mask) = model_of(pattern=pattern), padded()
    options = {**NEW, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True, "attention_mask": mask}
    with_cache, without = (model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.sequences_scores, without.sequences_scores, rtol=1e-5, atol=1e-5)


def test_right_padding_and_a_plain_cache(any_mechanism):
    """A prefill padded on the right, over transformers' own cache, then the next tokens."""
    ids = tokens()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    cache = DynamicCache(config=any_mechanism.config)
    step, full = tokens(length=1), torch.ones(2, 1, dtype=torch.long)
    positions = torch.tensor([[9], [5]])
    with torch.no_grad():
        any_mechanism(ids, attention_mask=mask, past_key_values=cache)
        seen = {"attention_mask": torch.cat([mask, full], 1), "past_key_values": cache, "position_ids": positions}
        logits = any_mechanism(step, **seen).logits[:, -1]
        for row in range(2):
            alone = torch.cat([ids[row][mask[row].bool()], step[row]])[None]
            torch.testing.assert_close(logits[row], any_mechanism(alone).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_packed_sequences(any_pattern):
    if "chunked_attention" in any_pattern.config.layer_types and older_than("5.20"):
        pytest.skip("transformers' masks count chunks from the start of the row, not of the document")
    first, second = tokens(rows=1, length=5), tokens(rows=1, length=7)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.no_grad():
        packed = any_pattern(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
        apart = torch.cat([any_pattern(first).logits, any_pattern(second).logits], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing(any_pattern):
    any_pattern.train()
    ids, gradients = tokens(), []
    for checkpoint in (False, True):
        if checkpoint:
            any_pattern.gradient_checkpointing_enable()
        any_pattern.zero_grad()
        any_pattern(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in any_pattern.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.sampled(2)
def test_saved_and_loaded(any_mechanism, tmp_path):
    any_mechanism.save_pretrained(tmp_path)
    loaded = ZooForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, any_mechanism(ids).logits)


def test_new_models_forget_slowly_and_do_not_explode():
    """Initial decays keep between a thousandth and most of a state per token; time steps start in their range."""
    for mechanism in ("gated_delta_net", "kimi_delta_attention", "mamba2", "mamba", "rg_lru", "gated_linear_attention"):
        config = model_of(mechanism).config
        model = ZooForCausalLM(config)
        mixer = model.model.layers[0].linear_attn
        state = dict(mixer.named_parameters())
        assert all(parameter.isfinite().all() for parameter in state.values())
        if "A_log" in state:
            assert (state["A_log"].exp() >= 0.99).all() and (state["A_log"].exp() <= 16.1).all()
        bias = state.get("dt_bias", state.get("dt_proj.bias"))
        if bias is not None and mechanism != "gated_linear_attention":
            steps = torch.nn.functional.softplus(bias)
            assert (steps > 0.9e-3).all() and (steps < 0.11).all() and steps.std() > 0
        assert model(tokens()).logits.abs().max() < 10


@pytest.mark.long
def test_learns():
    """A gated DeltaNet with one full layer learns to repeat a sequence."""
    torch.manual_seed(0)
    model = ZooForCausalLM(model_of().config).train()
    ids = tokens(rows=4, length=12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
