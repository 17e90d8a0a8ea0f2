"""config.json holds what differs and what engines look for, and reads back as the config that wrote it."""

import json

import pytest
from combinations import ROWS, SIZES
from huggingface_hub.errors import StrictDataclassError
from random_models import is_here, their_class_config
from transformers import PreTrainedConfig
from transformers.utils import logging

from configuration_zoo import ZooConfig
from configuration_zoo.config_file import ALWAYS
from configuration_zoo.version import __version__
from conversion.engine.config_bridge import import_config
from conversion.engine.registry import family_of, known_families

EVERY_ROW = [
    pytest.param(row, id=f"{group}-{key}")
    for group, rows in ROWS.items()
    for key, row in (rows.items() if isinstance(rows, dict) else enumerate(rows))
]
TINY = [(name, number) for name in known_families() for number in range(len(family_of(name).tiny))]


def check(config):
    said = json.loads(config.to_json_string())
    again = ZooConfig.from_dict(said)
    assert again.to_dict() == config.to_dict()
    assert again.to_json_string() == config.to_json_string()
    whole = config.to_dict()
    assert {name for name in ALWAYS if whole.get(name) is not None} <= said.keys()
    assert len(said) < len(whole) / 2 and None not in said.values()


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_row_of_the_combinations_reads_back(row):
    try:
        config = ZooConfig(**SIZES | row)
    except (ValueError, StrictDataclassError):
        pytest.skip("a row that needs another")
    check(config)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name, number", TINY)
def test_a_family_reads_back(name, number):
    if not is_here(name):
        pytest.skip("an older transformers")
    theirs = their_class_config(name, family_of(name), family_of(name).tiny[number])
    check(import_config(json.loads(theirs.to_json_string())))


def test_a_llama_is_short(tmp_path):
    config = ZooConfig.preset("llama-7b")
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert len(text.splitlines()) <= 45 and "null" not in text
    assert json.loads(text)["zoo_version"] == __version__
    assert repr(config) == f"ZooConfig {text}"


def test_none_where_the_default_is_a_value_is_written():
    """A default that would come back is not what a None says."""
    config = ZooConfig(**SIZES)
    name = next(name for name, value in config.to_dict().items() if value == "rms_norm")
    vars(config)[name] = None
    assert json.loads(config.to_json_string())[name] is None


def test_a_config_that_cannot_be_built_again_is_written_in_full():
    config = ZooConfig(**SIZES)
    config.layer_types = ["full_attention"] * 3
    config.num_hidden_layers = 2
    assert json.loads(config.to_json_string()).keys() >= {"num_hidden_layers", "layer_types"}
    config.rope_parameters = {"rope_type": "of nobody", "full_attention": 3}
    assert "of nobody" in repr(config)


def test_derived_values_that_were_changed_are_kept():
    config = ZooConfig(**SIZES)
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    config.sliding_window = 5
    check(config)
    assert json.loads(config.to_json_string())["layer_types"] == config.layer_types


def test_fewer_layers_of_a_short_file_are_its_first():
    config = ZooConfig(**SIZES, sliding_window=5, layer_types=["full_attention", "sliding_attention", "full_attention"])
    said = json.loads(config.to_json_string())
    assert ZooConfig.from_dict(said, num_hidden_layers=2).layer_types == config.layer_types[:2]
    plain = json.loads(ZooConfig(**SIZES).to_json_string())
    assert ZooConfig.from_dict(plain, num_hidden_layers=1).mlp_layer_types == ["dense"]


def test_a_newer_zoo_is_named_once(monkeypatch):
    warned = []
    monkeypatch.setattr("configuration_zoo.configuration_zoo.logger.warning", warned.append)
    config = ZooConfig.from_dict({**SIZES, "zoo_version": "99.0.0", "wavelets": 3, "foliation": True})
    assert len(warned) == 1 and "zoo 99.0.0" in warned[0] and "foliation, wavelets" in warned[0]
    assert config.wavelets == 3 and "zoo_version" not in vars(config)
    warned.clear()
    ZooConfig.from_dict({**SIZES, "zoo_version": __version__, "wavelets": 3})
    assert len(warned) == 1 and "wavelets=3" in warned[0]
    warned.clear()
    ZooConfig.from_dict({**SIZES, "zoo_version": "99.0.0"})
    assert warned == []


def test_what_is_read_is_formatted_for_the_log_alone(monkeypatch):
    """transformers formats a config it has read, whether its log takes the line or not."""
    printed = []
    monkeypatch.setattr(
        "configuration_zoo.configuration_zoo.written", lambda config, whole: printed.append(whole) or {"as": "read"}
    )
    values = {**SIZES, "qk_norm": "rms_norm"}
    config = ZooConfig.from_dict(values)
    assert printed == [] and "as" in repr(config) and len(printed) == 1
    assert vars(config).keys() == vars(ZooConfig(**values)).keys()
    level = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        again, rest = ZooConfig.from_dict(values, return_unused_kwargs=True, elsewhere=1)
    finally:
        logging.set_verbosity(level)
    assert len(printed) == 2 and again.to_dict() == config.to_dict() and rest == {"elsewhere": 1}


def test_a_config_has_a_readable_number_of_fields():
    """Details are keys of dicts; a new concept brings one field, or a key."""
    theirs = PreTrainedConfig.__dataclass_fields__
    own = [name for name in ZooConfig.__dataclass_fields__ if name not in theirs]
    assert len(own) <= 130, f"{len(own)} fields of ZooConfig's own: make details keys of a dict of settings"
