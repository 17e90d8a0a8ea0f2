"""`zoo advise`: published figures come out of the presets, and what is set as advised is inside its range."""

import json
import re

import pytest
from combinations import EXPERTS, LATENT, SIZES
from typer.testing import CliRunner

from configuration_zoo import ZooConfig
from configuration_zoo.presets import presets
from description_zoo.advice import advice, published_configs
from description_zoo.advice_rules import RULES
from zoo.cli.main import app

TOPICS = {rule.topic: rule for rule in RULES}


def value(topic, name):
    return TOPICS[topic].value(published_configs()[name])


# As tables of the field print them.
ASPECT = {
    "bloom-176b": 205, "t5-v1.1-xxl-decoder": 171, "palm-540b": 156, "gpt3-175b": 128, "opt-175b": 128,
    "mistral-7b": 128, "qwen-14b": 128, "llama-65b": 102, "llama2-70b": 102, "chinchilla-70b": 102,
    "t5-11b-decoder": 43, "gpt2-xl": 33,
}  # fmt: skip
HEADS = {"gpt3-175b": 1.0, "t5-11b-decoder": 16.0, "t5-v1.1-xxl-decoder": 1.0, "lamda-137b": 2.0, "llama2-70b": 1.0}
GATED = {
    "palm-540b": 4.0, "mistral-7b": 3.5, "llama2-70b": 3.5, "llama-65b": 2.69, "qwen-14b": 2.67, "deepseek-67b": 2.69,
    "yi-34b": 2.86, "t5-v1.1-xxl-decoder": 2.5, "gemma-2b": 8.0,
}  # fmt: skip


def test_published_figures_are_computed():
    assert {name: round(value("aspect ratio (width / layers)", name)) for name in ASPECT} == ASPECT
    assert {name: value("heads x head_dim / width", name) for name in HEADS} == HEADS
    assert {name: round(value("feed-forward ratio (gated)", name), 2) for name in GATED} == GATED
    assert value("feed-forward ratio (plain)", "t5-11b-decoder") == 64
    # Tables print 1.48 for PaLM, which is the width by the heads: 18432 / (48 * 256) = 1.5.
    assert value("heads x head_dim / width", "palm-540b") == pytest.approx(1 / 1.5)
    vocabularies = {"gpt3-175b": 50257, "llama-65b": 32000, "palm-540b": 256000, "qwen-14b": 152064, "yi-34b": 64000}
    assert {name: value("vocabulary", name) for name in vocabularies} == vocabularies


@pytest.mark.parametrize("name", presets())
def test_every_rule_has_an_answer_for_every_published_model(name):
    for note in advice(published_configs()[name]):
        inside, outside = note["models"]["inside"], note["models"]["outside"]
        assert inside, "a range that nobody keeps to is none"
        assert note["set"] or note["inside"]
        assert name in (inside if note["inside"] else outside) or TOPICS[note["topic"]].is_published
        assert re.search(r"(19|20)\d\d|arXiv|presets", note["source"])
    assert json.loads(json.dumps(advice(published_configs()[name]))) == advice(published_configs()[name])


def config(**flags):
    return ZooConfig(**{**SIZES, **flags})


def outside(config):
    return {note["topic"]: note for note in config.advice() if not note["inside"]}


ODD = {"attention_bias": True, "num_key_value_heads": 6, "residual_dropout": 0.1, "intermediate_size": 999}


@pytest.mark.parametrize("flags", [{}, ODD, EXPERTS, LATENT, {"block_type": "post_norm"}, {"gated_mlp": False}])
def test_what_is_set_as_advised_is_inside(flags):
    for topic, note in outside(config(**flags)).items():
        text = note["set"].partition(" at this ")[0].partition(", or ")[0].partition(" for one ")[0]
        if not re.match(r"\w+=", text):
            continue  # "a multiple of 8 for num_attention_heads=6": a choice that is the reader's
        changed = eval(f"dict({text})")
        found = {note["topic"]: note for note in config(**{**flags, **changed}).advice()}
        # A gate makes another rule's ratio the one that is read.
        assert topic not in found or found[topic]["inside"], topic


def test_what_does_not_apply_is_not_said():
    latent = {note["topic"] for note in config(**LATENT).advice()}
    assert not latent & {"query heads per key-value head", "heads x head_dim / width", "balance of experts"}
    experts = {note["topic"]: note for note in config(**EXPERTS, router_aux_loss_coef=0.01).advice()}
    assert experts["balance of experts"]["inside"] and experts["balance of experts"]["value"] == "loss x 0.01"
    alone = config(**{**EXPERTS, "mlp_layer_types": ["sparse"] * 3}).advice()
    assert "feed-forward ratio (gated)" not in {note["topic"] for note in alone}


def test_the_command():
    shown = CliRunner().invoke(app, ["advise", "gpt2"]).stdout
    assert "gated MLP: plain gelu_new" in shown and "intermediate_size=2048" in shown and "in range" in shown
    assert max(map(len, shown.splitlines())) <= 100
    every = CliRunner().invoke(app, ["advise", "gpt2", "--all"]).stdout
    assert "feed-forward ratio (plain): 4" in every
    notes = json.loads(CliRunner().invoke(app, ["advise", "gpt2", "--json"]).stdout)
    assert [note["topic"] for note in notes] == [note["topic"] for note in ZooConfig.preset("gpt2").advice()]
