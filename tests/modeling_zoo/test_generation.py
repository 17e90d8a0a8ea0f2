"""Every way to generate, against transformers' own model on the same weights in the same mode."""

import pytest
import torch
import torch._dynamo.testing
from random_models import build
from samples import every, only
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen3Config,
    StaticCache,
)

from conversion import load

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ORACLES = {
    "full": lambda: LlamaConfig(**SIZES),
    "sliding": lambda: MistralConfig(**SIZES, sliding_window=5),
    "mixed": lambda: Qwen3Config(
        **SIZES,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "parallel": lambda: PhiConfig(**{name: value for name, value in SIZES.items() if name != "head_dim"}),
}
MODES = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3},
    "beams": {"num_beams": 3},
    "beams, several": {"num_beams": 4, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "chunked prefill": {"prefill_chunk_size": 4},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.fixture(scope="module", params=ORACLES)
def pair(request, tmp_path_factory):
    """(transformers' model, zoo's model) with the same weights."""
    torch.manual_seed(1)
    theirs = build(ORACLES[request.param]())
    folder = tmp_path_factory.mktemp("source")
    theirs.save_pretrained(folder)
    ours = load(folder).eval()
    ours.generation_config.eos_token_id = None
    return theirs, ours


def prompt(rows=2, length=9, padded=True):
    tokens = torch.randint(1, 101, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    if padded:
        tokens[0, :3], mask[0, :3] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def generate(model, inputs, **mode):
    torch.manual_seed(3)
    return model.generate(**inputs, **{"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, **mode})


@pytest.mark.parametrize("mode", only(["greedy", "beams", "static cache", "chunked prefill"], MODES))
def test_same_tokens(pair, mode):
    theirs, ours = pair
    assert torch.equal(generate(ours, prompt(), **MODES[mode]), generate(theirs, prompt(), **MODES[mode]))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}], ids=["lookup", "assisted"])
def test_speculative_decoding_changes_no_token(pair, mode):
    theirs, ours = pair
    inputs = prompt(rows=1, padded=False)
    expected = generate(theirs, inputs, max_new_tokens=24)
    if "assistant" in mode:
        mode = {"assistant_model": ours}
    assert torch.equal(generate(ours, inputs, max_new_tokens=24, **mode), expected)


def test_a_random_assistant_changes_no_token(pair):
    theirs, ours = pair
    torch.manual_seed(9)
    assistant = type(ours)(ours.config).eval()
    inputs = prompt(rows=1, padded=False)
    assert torch.equal(generate(ours, inputs, assistant_model=assistant), generate(theirs, inputs))


@torch.no_grad()
@pytest.mark.parametrize("cache_class", [None, DynamicCache, "config", StaticCache])
def test_continuing_from_a_cache_in_steps_of_any_size(pair, cache_class):
    theirs, ours = pair
    tokens = torch.randint(1, 101, (2, 17))
    expected = theirs(tokens).logits
    if cache_class in (None, DynamicCache):
        cache = None if cache_class is None else DynamicCache()
    elif cache_class == "config":
        cache = DynamicCache(config=ours.config)
    else:
        cache = StaticCache(config=ours.config, max_cache_len=32)
    found, start = [], 0
    for step in (3, 1, 1, 6, 1, 5):
        outputs = ours(tokens[:, start : start + step], past_key_values=cache, use_cache=True)
        found, cache, start = [*found, outputs.logits], outputs.past_key_values, start + step
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=2e-5, atol=2e-5)


def test_continuing_generation_from_a_returned_cache(pair):
    theirs, ours = pair
    inputs = prompt(padded=False)
    first = generate(ours, inputs, return_dict_in_generate=True, max_new_tokens=5)
    rest = generate(ours, {"input_ids": first.sequences}, past_key_values=first.past_key_values, max_new_tokens=9)
    assert torch.equal(rest, generate(theirs, inputs))


def test_inputs_embeds(pair):
    theirs, ours = pair
    inputs = prompt()
    embeds = {"inputs_embeds": ours.get_input_embeddings()(inputs["input_ids"]).detach()}
    embeds["attention_mask"] = inputs["attention_mask"]
    assert torch.equal(generate(ours, embeds), generate(theirs, embeds))


def test_scores_and_attentions_of_generate(pair):
    theirs, ours = pair
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    found, expected = (generate(model, prompt(), max_new_tokens=3, **wanted) for model in (ours, theirs))
    for step in range(3):
        torch.testing.assert_close(found.scores[step], expected.scores[step], rtol=2e-5, atol=2e-5)
        assert len(found.hidden_states[step]) == len(expected.hidden_states[step])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("implementation", every(2, ["sdpa", "eager"]))
def test_continuous_batching(pair, implementation):
    theirs, ours = pair
    ours.set_attn_implementation(implementation)
    prompts = [[5, 6, 7, 8, 9], [11, 12, 13]]
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # Without a number of pages it takes nine tenths of the machine's memory.
    pages = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    results = ours.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=pages, progress_bar=False
    )
    ours.set_attn_implementation("sdpa")
    results = sorted(results.values(), key=lambda result: result.request_id)
    for tokens, result in zip(prompts, results, strict=True):
        assert result.error is None
        expected = generate(theirs, {"input_ids": torch.tensor([tokens])}, max_new_tokens=8)
        assert result.generated_tokens == expected[0, len(tokens) :].tolist()


def compiled_steps(model, tokens):
    """Logits of a prompt and of compiled steps over a static cache, and how many graphs the steps took."""
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounter()
    step = torch.compile(model.forward, fullgraph=True, backend=counted)
    cache = StaticCache(config=model.config, max_cache_len=32)
    found = [model(tokens[:, :5], past_key_values=cache, use_cache=True).logits]
    for index in range(5, tokens.shape[1]):
        inputs = model.prepare_inputs_for_generation(
            tokens[:, : index + 1],
            past_key_values=cache,
            attention_mask=torch.ones(1, index + 1, dtype=torch.long),
            next_sequence_length=1,
        )
        found.append(step(**inputs, use_cache=True).logits)
    return torch.cat(found, 1), counted.frame_count


@pytest.mark.long
@torch.no_grad()
def test_compiled_static_decoding_is_one_graph(pair):
    """A sliding layer of transformers' static cache counts in a Python integer, which takes them a second graph too."""
    theirs, ours = pair
    tokens = torch.randint(1, 101, (1, 12))
    found, graphs = compiled_steps(ours, tokens)
    torch.testing.assert_close(found, theirs(tokens).logits, rtol=2e-5, atol=2e-5)
    slides = "sliding_attention" in ours.config.layer_types
    assert graphs == (compiled_steps(theirs, tokens)[1] if slides else 1) <= 2


def test_auto_classes_generate_the_same(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    again.generation_config.eos_token_id = None
    assert torch.equal(generate(again, prompt()), generate(theirs, prompt()))
