"""Grouped-query → latent attention: exact on the trained model, in transformers' own classes too, and the calibrated
forms as good as was measured."""

import json

import pytest
import torch
import transformers
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from conversion import load
from modeling_zoo import ZooForCausalLM
from zoo.surgery.latent_reduced import latent
from zoo.surgery.measurement import perplexity
from zoo.surgery.operating import operate
from zoo.surgery.operation import SurgeryError

LATENT = {"attention_type": "latent"}


def held_out():
    model, text = stories()
    return model, text.to_measure(3072)


def test_full_rank_is_the_trained_model_to_the_bit(tmp_path):
    model, rows = held_out()
    report = operate(STORIES, tmp_path / "latent", LATENT)
    again = ZooForCausalLM.from_pretrained(tmp_path / "latent")
    assert torch.equal(logits(again, rows[:2]), logits(model, rows[:2]))
    assert report.after.cache_bytes_per_token == report.before.cache_bytes_per_token
    greedy = {"max_new_tokens": 120, "min_new_tokens": 120, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(rows[:1, :8], **greedy), model.generate(rows[:1, :8], **greedy))
    said = json.loads((tmp_path / "latent" / "config.json").read_text())
    assert "source_config" not in said
    assert said["surgery"]["operations"][0]["exactness"] == "bits"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("family", ["youtu", "deepseek_v3"])
def test_a_stock_folder_is_the_trained_model_without_remote_code(tmp_path, family):
    """Eager attention on both sides: torch's fused kernel is another one for keys wider than values."""
    rows = held_out()[1][:2]
    operate(STORIES, tmp_path / family, LATENT, method="stock", to=family)
    options = {"trust_remote_code": False, "attn_implementation": "eager"}
    original = transformers.AutoModelForCausalLM.from_pretrained(STORIES, **options)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family, **options)
    assert type(stock).__module__.startswith(f"transformers.models.{family}.")
    assert torch.equal(logits(stock, rows), logits(original, rows))


def test_queries_and_keys_with_norms_become_latent_and_mix_with_grouped_ones():
    model = random_model(family_config("qwen3", 0))
    ids = tokens(model.config)
    mixed = operate(model, None, LATENT, layers=[1]).model
    assert mixed.config.attention_type[0] == "grouped_query" and mixed.config.qk_norm is not None
    assert torch.equal(logits(mixed, ids), logits(model, ids))
    steps = mixed.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(steps, model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0))


def test_mixing_alone_is_exact_where_nothing_rotates_and_nothing_is_cut():
    config = family_config("llama", 0)
    config = type(config).from_dict(
        {**config.to_diff_dict(), "position_embedding_type": "none", "rope_parameters": None}
    )
    model = random_model(config)
    ids = tokens(config)
    width = config.head_dim
    report = operate(model, None, LATENT | {"qk_rope_head_dim": width}, calibrate=ids)
    assert report.operations[0].exactness == "arithmetic"


REDUCED = {
    # Rope width, rank, method: perplexity at most, of 2.70; what TransMLA's real rotations give is beside it.
    (8, 16, "rotated"): 4.9,
    (8, 24, "rotated"): 3.55,
    (16, 32, "rotated"): 3.0,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("rope", "rank", "method"), REDUCED)
def test_a_reduced_cache_costs_what_was_measured(rope, rank, method):
    _, rows = held_out()
    fields = LATENT | {"qk_rope_head_dim": rope, "kv_lora_rank": rank}
    report = operate(STORIES, None, fields, method=method, calibrate=TEXT)
    assert report.after.cache_bytes_per_token == 4 * 5 * (rope + rank)
    assert 2.7 < perplexity(report.model, rows) <= REDUCED[rope, rank, method]


@pytest.mark.long
def test_complex_mixing_beats_real_and_both_beat_none():
    _, rows = held_out()
    fields = LATENT | {"qk_rope_head_dim": 8, "kv_lora_rank": 16}
    found = {
        method: perplexity(operate(STORIES, None, fields, method=method, calibrate=TEXT).model, rows)
        for method in ("rotated", "real", "plain")
    }
    assert found["rotated"] <= 4.9 and 9 < found["real"] < 12 and found["plain"] > 30


def test_the_latent_loses_less_than_any_perturbed_one():
    """The quadratic form that is minimised, against a hundred perturbations of the projection."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rest, value, states = draw(6, 9), draw(8, 9), draw(200, 9)
    moment = states.T @ states / 200
    down, up = latent(rest, value, moment, 5)

    def loss(down, up):
        error = torch.cat((rest, value)) - up @ down
        scale = torch.ones(14, dtype=torch.float64)
        size = [torch.einsum("rd,de,re->r", rows, moment, rows).sqrt().mean() for rows in (rest, value)]
        scale[:6] = size[1] / size[0]
        return torch.einsum("r,rd,de,re->", scale**2, error, moment, error)

    best = loss(down, up)
    for _ in range(100):
        assert loss(down, up + 1e-2 * draw(*up.shape)) > best
        assert loss(down + 1e-2 * draw(*down.shape), up) > best


@pytest.mark.parametrize(
    ("fields", "options", "says"),
    [
        ({"kv_lora_rank": 99, "qk_rope_head_dim": 8}, {}, "full rank of 56"),
        ({"qk_rope_head_dim": 12}, {}, "multiple of head_dim=8"),
        ({}, {"layers": "9"}, "layer 9 cannot be changed so; layers 0-4 can"),
        ({}, {"method": "nothing"}, "there are"),
        ({"head_dimm": 4}, {}, "Did you mean 'head_dim'"),
        ({"scoring_func": "sigmoid"}, {}, "no operation changes scoring_func"),
        ({}, {"calibrate": "nothing.txt"}, "is no file of text"),
        ({}, {"calibrate": torch.full((1, 600), 512)}, "outside the vocabulary of 512"),
        ({}, {"calibrate": ["Once upon a time."]}, "fewer than one row"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(tmp_path, fields, options, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, tmp_path / "new", LATENT | fields, **options)
    assert list(tmp_path.iterdir()) == []


def test_norms_of_keys_stop_a_mixing():
    model = random_model(family_config("qwen3", 0))
    with pytest.raises(SurgeryError, match="qk_norm"):
        operate(model, None, LATENT | {"qk_rope_head_dim": model.config.head_dim})


@pytest.mark.long
def test_a_folder_written_in_bfloat16_computes_in_it(tmp_path):
    operate(STORIES, tmp_path / "half", LATENT, dtype="bfloat16")
    model, rows = load(tmp_path / "half"), held_out()[1][:2]
    assert model.dtype == torch.bfloat16
    assert torch.equal(logits(model, rows), logits(load(STORIES, dtype="bfloat16"), rows))


def test_the_command_line(zoo, tmp_path):
    code, out, _ = zoo("surgery", STORIES)
    assert code == 0 and "--set attention_type=latent" in out and "bits" in out
    code, out, _ = zoo("surgery", STORIES, tmp_path / "new", "--set", "attention_type=latent", "--json")
    assert code == 0 and json.loads(out)["operations"][0]["largest_difference"] == 0.0
    code, out, error = zoo("surgery", STORIES, tmp_path / "more", "--set", "hidden_act=relu")
    assert code == 1 and error.count("\n") == 1 and "no operation changes hidden_act" in error
    assert not (tmp_path / "more").exists()
    code, out, _ = zoo("surgery", STORIES, "--set", "attention_type=latent", "--dry-run")
    assert code == 0 and "bits" in out
