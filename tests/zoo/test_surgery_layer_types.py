"""Attention → recurrences, windows, no rotation, in chosen layers or those that cost least."""

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from zoo.surgery import Healing, operate
from zoo.surgery.measurement import divergence, perplexity
from zoo.surgery.operation import SurgeryError
from zoo.surgery.recurrence import WITH_QUERIES

TYPES, WINDOW, KIND = "layer_types", "sliding_window", "linear_attention_type"
SLIDING = {TYPES: "sliding_attention", WINDOW: 16}


def test_a_window_is_exact_within_it_and_not_beyond():
    model, text = stories()
    new, rows = operate(STORIES, None, SLIDING).model, text.to_measure(512)
    assert torch.equal(logits(new, rows[:, :16]), logits(model, rows[:, :16]))
    assert not torch.equal(logits(new, rows[:, :17])[:, -1], logits(model, rows[:, :17])[:, -1])
    again = operate(new, None, {TYPES: "full_attention"})
    assert torch.equal(logits(again.model, rows), logits(model, rows)) and again.model.config.sliding_window is None
    assert again.operations[0].exactness == "when length <= 16"


@pytest.mark.long
def test_the_layers_that_cost_least_slide():
    """Of 2.70: all at 3.24, all but the last at 2.92, which is what is chosen."""
    report = operate(STORIES, None, SLIDING, layers="auto:4", calibrate=TEXT)
    assert report.operations[0].layers == [0, 1, 2, 3]
    assert perplexity(report.model, stories()[1].to_measure(3072)) <= 2.93


def test_a_layer_without_rotation_costs_what_was_measured():
    new = operate(STORIES, None, {"no_rope_layers": 0}, layers=[2]).model
    assert new.config.no_rope_layers == [1, 1, 0, 1, 1]
    assert perplexity(new, stories()[1].to_measure(3072)) == pytest.approx(3.21, abs=0.02)
    with pytest.raises(SurgeryError, match="does not get one"):
        operate(new, None, {"no_rope_layers": [0, 1, 1, 1, 1]})


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", [*WITH_QUERIES, "mamba2", "rg_lru"])
def test_a_recurrence_starts_from_what_attention_was(kind):
    model = random_model(family_config("llama", 0))
    new = operate(model, None, {TYPES: "linear_attention", KIND: kind}, layers=[1]).model
    mixer, was = new.model.layers[1].linear_attn, model.model.layers[1].self_attn
    if kind in WITH_QUERIES:
        repeat = model.config.num_attention_heads // model.config.num_key_value_heads
        assert torch.equal(mixer.q_proj.weight, was.q_proj.weight) and torch.equal(
            mixer.o_proj.weight, was.o_proj.weight
        )
        heads = was.k_proj.weight.unflatten(0, (model.config.num_key_value_heads, -1))
        assert torch.equal(mixer.k_proj.weight, heads.repeat_interleave(repeat, 0).flatten(0, 1))
    ids = tokens(new.config)
    all_at_once = logits(new, ids)
    assert all_at_once.isfinite().all()
    steps = new.generate(ids[:1, :9], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert steps.shape == (1, 13)


@pytest.mark.long
def test_a_little_training_on_outputs_is_worth_most_of_it():
    """One layer, of 2.70: far off with copied weights."""
    model, text = stories()
    how = Healing(0, layerwise=15)
    report = operate(STORIES, None, {TYPES: "linear_attention"}, layers=[1], heal=text.ids[:24], healing=how)
    assert report.after.perplexity > 10 and report.healed.perplexity < 5
    assert divergence(model, report.model, text.to_measure(512)) < 0.6


@pytest.mark.long
def test_two_gated_delta_nets_heal_to_what_was_measured():
    how = Healing(150, layerwise=80)
    report = operate(STORIES, None, {TYPES: "linear_attention"}, layers=[1, 3], heal=TEXT, healing=how)
    assert report.healed.perplexity <= 2.96 and report.after.perplexity > 20
    assert report.healed.cache_bytes_per_token == 768


@pytest.mark.long
def test_all_five_heal_to_what_was_measured():
    how = Healing(150, layerwise=80)
    report = operate(STORIES, None, {TYPES: "linear_attention"}, heal=TEXT, healing=how)
    assert report.healed.perplexity <= 1.05 * 3.411


@pytest.mark.long
def test_recurrences_are_chosen_after_a_little_training():
    """Copied weights alone would choose layer 4, and leave layer 0 to the last."""
    report = operate(STORIES, None, {TYPES: "linear_attention"}, layers="auto:2", calibrate=TEXT)
    assert 0 in report.operations[0].layers and 4 not in report.operations[0].layers


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({TYPES: "sliding_attention"}, "say sliding_window as well"),
        ({TYPES: "linear_attention", KIND: "short_conv"}, "is none of"),
        ({TYPES: ["sliding_attention", "linear_attention", *["full_attention"] * 3]}, "cannot be reached"),
        ({TYPES: "moe"}, "cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, fields)


def test_tables_by_type_and_other_recurrences_are_refused():
    with pytest.raises(SurgeryError, match="a table for each type"):
        operate(random_model(family_config("gemma3_text", 0)), None, {TYPES: "full_attention"})
    with pytest.raises(SurgeryError, match="has layers of 'gated_delta_net'"):
        operate(random_model(family_config("qwen3_next", 0)), None, {TYPES: "linear_attention", KIND: "mamba2"})
