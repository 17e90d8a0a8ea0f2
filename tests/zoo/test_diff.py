"""`zoo diff`: everything in which two models differ, and nothing else."""

import json

import pytest
from combinations import EXPERTS, SIZES
from typer.testing import CliRunner

import zoo
from configuration_zoo import ZooConfig
from description_zoo.difference import difference, numbers
from zoo.cli.main import app
from zoo.inspection import reported


def compared(one, other):
    configs = ZooConfig(**{**SIZES, **one}), ZooConfig(**{**SIZES, **other})
    return difference(tuple(reported(config, context=32) for config in configs), configs)


def test_a_model_does_not_differ_from_itself():
    assert compared(EXPERTS, EXPERTS) == {"totals": {}, "layers": [], "flags": {}}


def test_what_differs_is_there_and_what_does_not_is_not():
    found = compared({"qk_norm": "rms_norm"}, {"no_rope_layers": [1, 0, 1], "num_key_value_heads": 6})
    assert found["flags"] == {
        "num_key_value_heads": [2, 6],
        "qk_norm": ["rms_norm", None],
        "no_rope_layers": [None, "1, 0"],
    }
    # The layers that rotate stand beside theirs, those without positions have no like.
    same, other = found["layers"]
    assert same["layers"] == ["0-2", "0, 2"] and other["layers"] == [None, "1"]
    assert same["features"] == [["QK rms norm"], []] and "positions" not in same and "mlp" not in same
    assert other["positions"] == [None, "NoPE"]
    assert found["totals"]["cache.bytes"] == [3 * 32 * 48 * 2, 3 * 32 * 144 * 2]


def test_layers_stand_beside_those_of_their_mechanism():
    plain = {"layer_types": ["full_attention"] * 3}
    mixed = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "hidden_size": 64}
    heads = {"linear_attention_type": "gated_delta_net", "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    widths = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    found = compared(plain, mixed | heads | widths)["layers"]
    assert [row["layers"] for row in found] == [["0-2", "1"], [None, "0, 2"]]
    assert found[1]["mixer"] == [None, "gated_delta_net 2/2 x 8"]


@pytest.mark.parametrize(
    "places, said",
    [
        ([4], "4"),
        ([0, 1, 2, 6], "0-2, 6"),
        ([3, 7, 11, 15], "3, 7 ... 15"),
        ([1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19], "1-2, 4-5, 7-8, ... 19"),
    ],
)
def test_numbers_of_layers_in_short(places, said):
    assert numbers(places) == said


def test_configs_are_compared_too():
    config = ZooConfig.preset("gpt2", num_hidden_layers=3)
    found = zoo.diff(config, "gpt2")
    assert found["flags"] == {"num_hidden_layers": [3, 12]} and found["layers"] == [{"layers": ["0-2", "0-11"]}]


def test_the_command():
    done = CliRunner().invoke(app, ["diff", "gpt2", "gpt2-medium", "--json"])
    found = json.loads(done.stdout)
    assert found["context"] == 1024 and found["flags"]["num_hidden_layers"] == [12, 24]
    shown = CliRunner().invoke(app, ["diff", "gpt2", "gpt2-medium"]).stdout
    assert "layers 0-11 | 0-23" in shown and "parameters" in shown and "hidden_act" not in shown
    assert "differ in nothing" in CliRunner().invoke(app, ["diff", "gpt2", "gpt2"]).stdout
