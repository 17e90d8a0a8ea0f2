"""Heads of queries, and models n times as wide."""

import pytest
import torch
import transformers
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from zoo.surgery import operate
from zoo.surgery.attention_heads import best_heads
from zoo.surgery.measurement import perplexity
from zoo.surgery.operation import TOLERANCE, SurgeryError

HEADS, GROUPS, WIDTH = "num_attention_heads", "num_key_value_heads", "hidden_size"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fields", [{HEADS: 12}, {HEADS: 12, GROUPS: 6}])
def test_silent_heads_change_nothing_and_the_best_ones_are_those_there_were(fields):
    model, text = stories()
    rows = text.to_measure(512)
    more = operate(STORIES, None, fields).model
    difference = (logits(more, rows) - logits(model, rows)).abs().max()
    assert difference <= TOLERANCE * logits(model, rows).abs().max() and more.config.head_dim == 8
    again = operate(more, None, {HEADS: 8, GROUPS: 4}, calibrate=text.ids[:8]).model
    assert torch.equal(again.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight)
    assert (logits(again, rows) - logits(model, rows)).abs().max() <= 1e-3 * logits(model, rows).abs().max()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "gpt_oss"])
def test_norms_biases_and_sinks_go_with_their_heads(family):
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config)
    more = operate(model, None, {HEADS: 2 * config.num_attention_heads, GROUPS: 2 * config.num_key_value_heads}).model
    difference = (logits(more, ids) - logits(model, ids)).abs().max()
    assert difference <= TOLERANCE * logits(model, ids).abs().max()


@pytest.mark.long
def test_fewer_heads_are_a_llama_and_cost_what_was_measured(tmp_path):
    """Half of the heads; the first ones of each group without least squares are beyond 20."""
    operate(STORIES, tmp_path / "half", {HEADS: 4}, calibrate=TEXT, to="llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert theirs.config.num_attention_heads == theirs.config.num_key_value_heads == 4
    assert perplexity(theirs, stories()[1].to_measure(3072)) <= 3.35


def test_heads_are_scored_by_what_they_give():
    config = stories()[0].config
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(200, 64, generator=generator, dtype=torch.float64)
    output = torch.randn(64, 64, generator=generator)
    ones = torch.cat((states, torch.ones(200, 1)), 1)
    gives = [(states[:, h * 8 : h * 8 + 8] @ output[:, h * 8 : h * 8 + 8].double().T).square().sum() for h in range(8)]
    found, _ = best_heads(config, 4, 4, output, ones.T @ ones)
    assert found.tolist() == [2 * group + int(gives[2 * group + 1] > gives[2 * group]) for group in range(4)]
    pairs = torch.tensor([gives[2 * group] + gives[2 * group + 1] for group in range(4)])
    assert best_heads(config, 4, 2, output, ones.T @ ones)[1].tolist() == pairs.topk(2).indices.sort().values.tolist()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss", "deepseek_v3", "bert_generation"])
def test_a_wider_model_computes_the_same(family):
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config)
    fields = {WIDTH: 2 * config.hidden_size, "intermediate_size": 2 * config.intermediate_size}
    if config.moe_intermediate_size:
        fields["moe_intermediate_size"] = 2 * config.moe_intermediate_size
    new = operate(model, None, fields).model
    assert (logits(new, ids) - logits(model, ids)).abs().max() <= TOLERANCE * logits(model, ids).abs().max()


@pytest.mark.long
def test_a_tied_model_three_times_as_wide_scales_its_logits():
    model, text = stories()
    rows = text.to_measure(512)
    fields = {WIDTH: 192, HEADS: 24, GROUPS: 12, "intermediate_size": 516}
    new = operate(STORIES, None, fields).model
    assert new.config.logits_scaling == 3 and new.config.tie_word_embeddings
    assert (logits(new, rows) - logits(model, rows)).abs().max() <= TOLERANCE * logits(model, rows).abs().max()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({HEADS: 6}, "must be a multiple of num_key_value_heads=4"),
        ({HEADS: 0}, "must be a multiple"),
        ({WIDTH: 96}, "must be a multiple of 64"),
        ({WIDTH: 128, HEADS: 16}, "grow together"),
        ({WIDTH: 128, "intermediate_size": 200}, "must be 172, or 344"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, fields)


def test_slopes_of_alibi_belong_to_their_heads():
    model = random_model(family_config("bloom", 0))
    with pytest.raises(SurgeryError, match="position_embedding_type='alibi'"):
        operate(model, None, {HEADS: 2 * model.config.num_attention_heads})
