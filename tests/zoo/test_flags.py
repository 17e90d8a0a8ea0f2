"""`zoo flags`: every field of a config with its kind, what it means and where it comes from."""

import json
import re
from dataclasses import fields

import pytest
from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of
from description_zoo.flags import flag, flags
from zoo.cli.flags import in_words, show

OF_TRANSFORMERS = {field.name for field in fields(PreTrainedConfig)}


def test_every_field_is_there_and_has_a_meaning():
    found = flags()
    assert found.keys() <= described(ZooConfig).keys()
    assert described(ZooConfig).keys() - found.keys() <= OF_TRANSFORMERS
    assert json.loads(json.dumps(found)) == found


# A paper or a release by number or year, or code that was published; else whose word it is.
CITED = re.compile(r"arXiv \d{4}\.\d{5}|(19|20)\d\d|published code|^transformers$|^own to zoo$")


@pytest.mark.parametrize("name", flags())
def test_a_field_says_what_it_means_and_where_it_is_from(name):
    facts = flags()[name]
    said = facts["meaning"]
    assert len(said.split()) >= 4 and said[0].isupper() and said.endswith("."), "a sentence, for a reader"
    assert " | " not in said and "  " not in said
    assert CITED.search(facts["source"])
    assert facts["allowed"] or facts["takes"] not in ("a name", "a value")


def test_a_dict_of_settings_says_what_it_is_about():
    for name in settings_of(ZooConfig):
        assert ZooConfig.__dataclass_fields__[name].metadata["meaning"].endswith(".")

    facts = flag("sliding_window", flags())
    assert facts["takes"] == "a whole number above 0" and facts["default"] is None and facts["group"] == "Attention"
    assert facts["by_layer"].startswith("per_layer_config, for a 'sliding_attention'")
    assert facts["meaning"].startswith("A token sees itself and window - 1 before it")
    assert facts["source"] == "Beltagy et al. 2020, arXiv 2004.05150"
    assert facts["file"] == "configuration_zoo/fields_attention.py"
    assert flag("rms_norm_eps", flags())["name"] == "norm_eps"
    assert flag("precision.rope", flags())["allowed"] == ["activation", "float32_trig", "float32_qk"]
    assert flag("hidden_size", flags())["by_layer"].startswith("no")
    assert flag("layer_types", flags())["by_layer"] == "a list with one entry for each layer"
    assert flag("layer_types", flags())["takes"] == "a list with a name for each layer, or a period"
    assert flag("block_type", flags())["takes"] == "a name, or a list with a name for each layer"
    assert flag("eos_token_id", flags())["takes"].startswith("a whole number, or a list")
    assert "softmax attention" in flag("attention_sinks", flags())["needs"]


def test_words_fit_a_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for facts in flags().values():
        assert max(map(len, in_words(facts).splitlines())) <= 100
    show(flags())
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert sum(name in line for line in lines for name in ("hidden_act", "precision.rope")) == 2


@pytest.mark.parametrize("name, says", [("d_ff", "Use intermediate_size."), ("slidng_window", "Did you mean 'sliding")])
def test_a_name_that_is_none_is_answered(name, says):
    with pytest.raises(ValueError, match=f"There is no flag '{name}'. {says}"):
        flag(name, flags())
