"""Key-value heads: repeated to the bit, joined as well as was measured, and back again."""

import pytest
import torch
import transformers
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from zoo.surgery.kv_heads import partitions
from zoo.surgery.measurement import perplexity
from zoo.surgery.operating import operate
from zoo.surgery.operation import SurgeryError

HEADS = "num_key_value_heads"


def held_out():
    model, text = stories()
    return model, text.to_measure(3072)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("heads", "most"), [(2, 6.0), (1, 13.9)])
def test_joined_heads_cost_what_was_measured_and_export_to_llama(tmp_path, heads, most):
    """Of 2.70; averaging heads costs 94.5 and 159."""
    _, rows = held_out()
    report = operate(STORIES, tmp_path / "new", {HEADS: heads}, calibrate=TEXT, to="llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert type(theirs).__name__ == "LlamaForCausalLM" and theirs.config.num_key_value_heads == heads
    assert perplexity(theirs, rows) <= most
    assert report.after.cache_bytes_per_token == 320 * heads


@pytest.mark.long
def test_averaging_loses_what_was_measured():
    _, rows = held_out()
    found = {
        name: perplexity(operate(STORIES, None, {HEADS: 2}, method=name).model, rows) for name in ("mean", "first")
    }
    assert 85 < found["mean"] < 105 and 38 < found["first"] < 47


@pytest.mark.sampled(4)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gptj", "gpt_oss"])
def test_repeated_heads_join_to_what_they_were(family):
    """MHA of repeated heads → GQA: nothing is lost. With biases (Qwen2), interleaved pairs (GPT-J), sinks (gpt-oss)."""
    config = family_config(family, 0)
    values = {**config.to_diff_dict(), HEADS: config.num_attention_heads // 2, "rope_parameters": {"rope_theta": 100.0}}
    model = random_model(
        type(config).from_dict({key: value for key, value in values.items() if key != "source_config"})
    )
    before = logits(model, ids := tokens(model.config))
    more = operate(model, None, {HEADS: config.num_attention_heads}).model
    assert torch.equal(logits(more, ids), before)
    again = operate(more, None, {HEADS: config.num_attention_heads // 2}, calibrate=tokens(config, 8, 32)).model
    assert (logits(again, ids) - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.long
def test_some_layers_alone():
    model, rows = held_out()
    some = operate(STORIES, None, {HEADS: 2}, calibrate=TEXT, layers=[1, 3]).model
    assert [layer.num_key_value_heads for layer in some.config.per_layer_config] == [4, 2, 4, 2, 4]
    assert perplexity(some, rows) < 3.6
    assert some.generate(rows[:1, :8], max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 12)


def test_every_partition_is_tried():
    assert len(partitions(tuple(range(8)), 2)) == 105 and len(partitions(tuple(range(8)), 4)) == 35


@pytest.mark.parametrize(("heads", "says"), [(3, "must divide 4"), (16, "the 8 heads of the queries")])
def test_heads_that_do_not_divide_are_refused(heads, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, {HEADS: heads})


def test_norms_of_keys_are_averaged_only():
    model = random_model(family_config("qwen3", 0))
    with pytest.raises(SurgeryError, match="--method mean"):
        operate(model, None, {HEADS: 1})
    assert operate(model, None, {HEADS: 1}, method="mean").model.config.num_key_value_heads == 1
