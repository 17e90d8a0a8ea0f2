"""Wider heads by zeros: the same function, whatever rotates, gates or norms, and refusals of what would count zeros."""

import json

import pytest
import torch
from surgery_models import STORIES, family_config, logits, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import operate
from zoo.surgery.operation import TOLERANCE, SurgeryError

WIDTH, VALUES = "head_dim", "v_head_dim"
SCALED = [
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
     "original_max_position_embeddings": 32},
    {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
]  # fmt: skip


def near(new, old):
    return (new - old).abs().max() <= TOLERANCE * old.abs().max()


def test_the_trained_model_with_heads_of_sixteen(zoo, tmp_path):
    """To positions far behind those that are verified, with a cache, and in a fresh process's words."""
    code, out, error = zoo("surgery", STORIES, tmp_path / "new", "--set", "head_dim=16", "--json")
    assert code == 0, error
    assert [done["exactness"] for done in json.loads(out)["operations"]] == ["arithmetic"]
    model, text = stories()
    new, rows = ZooForCausalLM.from_pretrained(tmp_path / "new"), text.to_measure(512)
    assert near(logits(new, rows), logits(model, rows))
    assert (new.config.head_dim, new.config.value_width, new.config.attention_multiplier) == (16, 16, 8**-0.5)
    assert torch.equal(new.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    greedy = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(new.generate(rows[:1, :20], **greedy), model.generate(rows[:1, :20], **greedy))
    code, out, error = zoo("surgery", STORIES)
    assert code == 0 and "head_dim=16" in out, out


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "family",
    [
        "qwen3",
        "llama",
        "gpt_oss",
        "gemma3_text",
        "qwen2",
        "falcon",
        "olmo2",
        "gpt_neox",
        "phi",
        "gpt2",
        "bloom",
        "glm4",
        "qwen3_next",
    ],
)
def test_rotations_biases_norms_sinks_and_gates_stay_right(family):
    """Odd widths too, and values as they were."""
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config)
    before = logits(model, ids)
    for more, fields in ((6, {}), (20, {}), (10, {VALUES: config.value_width})):
        report = operate(model, None, {WIDTH: config.head_dim + more, **fields})
        new = report.model
        assert report.operations[0].exactness == "arithmetic" and near(logits(new, ids), before)
        assert new.config.head_dim == config.head_dim + more
        assert new.config.value_width == config.value_width + (0 if fields else more)
        greedy = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(new.generate(ids, **greedy), model.generate(ids, **greedy))


@pytest.mark.parametrize("gate", ["query", "elementwise", "headwise"])
def test_a_gate_stays_open_as_far(gate):
    config = family_config("llama", 0)
    config = type(config)(**{**config.to_dict(), "attn_output_gate": gate})
    model = random_model(config)
    new = operate(model, None, {WIDTH: config.head_dim + 4}).model
    assert near(logits(new, ids := tokens(config)), logits(model, ids))


@pytest.mark.parametrize("table", SCALED, ids=[table["rope_type"] for table in SCALED])
def test_scaled_tables_are_kept_exactly(table):
    config = family_config("llama", 0)
    config = type(config)(**{**config.to_dict(), "rope_parameters": table})
    model = random_model(config)
    ids = tokens(config, length=61)
    for width in (config.head_dim + 2, 3 * config.head_dim):
        new = operate(model, None, {WIDTH: width}).model
        assert near(logits(new, ids), logits(model, ids))
        old = model.model.rotary_emb
        assert torch.equal(new.model.rotary_emb.inv_freq, old.inv_freq)


@pytest.mark.parametrize(
    ("family", "number", "fields", "says"),
    [
        ("llama", 0, {WIDTH: 4}, "head_dim=4 is less than"),
        ("llama", 0, {WIDTH: 64, VALUES: 2}, "v_head_dim=2 is less than"),
        ("deepseek_v3", 0, {WIDTH: 64}, "num_mtp_layers|no layer of this model"),
        ("bitnet", 0, {WIDTH: 64}, "block_type='sub_norm' takes a mean"),
        ("stablelm", 1, {WIDTH: 64}, "subtracts a mean"),
        ("llama4_text", 0, {WIDTH: 64}, "weight='none'"),
        ("gemma4_text", 0, {WIDTH: 64}, "of their own|proportional|value_norm"),
    ],
)
def test_what_would_change_is_refused(family, number, fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(random_model(family_config(family, number)), None, fields)


def test_some_layers_alone_are_refused():
    with pytest.raises(SurgeryError, match="leave out --layers"):
        operate(STORIES, None, {WIDTH: 16}, layers=[1])
