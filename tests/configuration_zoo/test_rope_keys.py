"""Rotation in the spelling of transformers 4 beside `rope_parameters`: what it means, or one sentence."""

import json
import shutil

import pytest
import torch
from random_models import randomize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo import ZooConfig
from conversion import ConversionError, convert, import_config
from conversion.families.shared_common import tiny

THETA = 5000.0
# As the model cards of long-context models say it: a key to add to config.json.
RECIPES = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, spelt as before": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic, with the theta": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA},
}
TABLE = {"rope_type": "default", "rope_theta": THETA}
LAYERS = ["sliding_attention", "full_attention", "full_attention"]


def table_of(recipe):
    """The one spelling that needs no interpretation."""
    return {key: value for key, value in recipe.items() if key != "type"} | {
        "rope_theta": THETA, "rope_type": recipe.get("rope_type", recipe.get("type")),
    }  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", pytest.param("llama", marks=pytest.mark.long)])
def folders(request, tmp_path_factory):
    """(folder of a random model, the same converted)."""
    where = tmp_path_factory.mktemp(request.param)
    sizes = tiny(rope_parameters=dict(TABLE), max_position_embeddings=16)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[request.param](**sizes))
    randomize(model)
    model.save_pretrained(where / "source")
    convert(where / "source", where / "zoo", progress=False)
    return where / "source", where / "zoo"


def edited(folder, tmp_path, **keys):
    copy = shutil.copytree(folder, tmp_path / "edited")
    raw = json.loads((copy / "config.json").read_text()) | keys
    (copy / "config.json").write_text(json.dumps(raw))
    return copy


@torch.no_grad()
def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()
    return model(torch.arange(1, 41)[None]).logits


def wanted(source, tmp_path, recipe):
    """transformers' own model with the table the recipe means."""
    return logits(edited(source, tmp_path / "wanted", rope_parameters=table_of(recipe)))


def agree(found, expected, plain):
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (found - plain).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_added_to_config_json_scales_the_rotation_the_model_has(recipe, folders, tmp_path):
    source, zoo = folders
    expected, plain = wanted(source, tmp_path, recipe), logits(source)
    agree(logits(edited(zoo, tmp_path, rope_scaling=recipe)), expected, plain)
    agree(logits(zoo, rope_scaling=dict(recipe)), expected, plain)
    convert(edited(source, tmp_path / "theirs", rope_scaling=recipe), tmp_path / "converted", progress=False)
    agree(logits(tmp_path / "converted"), expected, plain)


def test_the_code_in_the_folder_reads_the_recipe_too(folders, tmp_path):
    source, zoo = folders
    recipe = RECIPES["yarn"]
    expected, plain = wanted(source, tmp_path, recipe), logits(source)
    agree(logits(edited(zoo, tmp_path, rope_scaling=recipe), trust_remote_code=True), expected, plain)
    agree(logits(zoo, rope_scaling=dict(recipe), trust_remote_code=True), expected, plain)


def test_the_edited_source_comes_back_as_it_stood(folders, tmp_path):
    source, zoo, back = edited(folders[0], tmp_path, rope_scaling=RECIPES["yarn"]), tmp_path / "zoo", tmp_path / "back"
    raw = json.loads((source / "config.json").read_text())
    convert(source, zoo, progress=False)
    convert(zoo, back, to=raw["model_type"], progress=False)
    assert json.loads((back / "config.json").read_text()) == raw


# Keys beside a table with the theta 5000 -> what the sentence must say.
CONTRADICTIONS = {
    "a theta": ({"rope_theta": 900.0}, ("rope_theta", "900.0", "5000.0")),
    "a theta in the scaling": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0}}, ("900.0", "5000.0"),
    ),
    "a kind alone": ({"rope_type": "yarn"}, ("rope_type", "'yarn'", "'default'")),
    "a scaling of no kind": ({"rope_scaling": {"factor": 2.0}}, ("rope_scaling", "rope_type")),
    "a scaling that is no table": ({"rope_scaling": "yarn"}, ("rope_scaling", "'yarn'")),
    "a share that rotates": (
        {"partial_rotary_factor": 0.5, "rope_parameters": TABLE | {"partial_rotary_factor": 0.25}},
        ("partial_rotary_factor", "0.5", "0.25"),
    ),
    "two scalings": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0},
         "rope_parameters": TABLE | {"rope_type": "linear", "factor": 4.0}},
        ("factor", "2.0", "4.0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("keys, words", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_is_refused_with_both(keys, words, folders, tmp_path):
    source, zoo = folders
    for attempt in (
        lambda: AutoConfig.from_pretrained(edited(zoo, tmp_path / "zoo", **keys)),
        lambda: convert(edited(source, tmp_path / "source", **keys), tmp_path / "converted", progress=False),
        lambda: ZooConfig(**{"rope_parameters": dict(TABLE), **keys}),
    ):
        with pytest.raises((ValueError, ConversionError)) as refusal:
            attempt()
        assert all(word in str(refusal.value) for word in words), refusal.value


def test_what_agrees_is_no_contradiction():
    config = ZooConfig(rope_parameters=dict(TABLE), rope_theta=THETA, rope_type="default", rope_scaling=None)
    assert config.rope_parameters == TABLE


def test_a_theta_is_not_lost_with_the_table_that_held_it(folders):
    with pytest.raises(ValueError, match=r"leaves out rope_theta, which is 5000\.0"):
        AutoConfig.from_pretrained(folders[1], rope_parameters={"rope_type": "linear", "factor": 2.0})
    given = TABLE | {"rope_type": "linear", "factor": 2.0}
    assert AutoConfig.from_pretrained(folders[1], rope_parameters=given).rope_parameters == given


def test_tables_by_layer_type_take_a_scaling_by_layer_type():
    tables = {"sliding_attention": {"rope_theta": 100.0}, "full_attention": {"rope_theta": THETA}}
    fields = {"num_hidden_layers": 3, "layer_types": LAYERS, "sliding_window": 5, "rope_parameters": tables}
    linear = {"rope_type": "linear", "factor": 2.0}
    merged = ZooConfig(**fields, rope_scaling={"full_attention": linear}).rope_parameters
    assert merged["full_attention"] == {"rope_theta": THETA} | linear
    assert merged["sliding_attention"] == {"rope_type": "default", "rope_theta": 100.0}
    with pytest.raises(ValueError, match=r"rope_scaling=.* is of no layer type, .* \['full_attention', 'sliding"):
        ZooConfig(**fields, rope_scaling=linear)
    with pytest.raises(ValueError, match=r"rope_theta=900.0 and .*100\.0, 5000\.0"):
        ZooConfig(**fields, rope_theta=900.0)
    assert ZooConfig(**fields, rope_theta=THETA).rope_parameters["sliding_attention"]["rope_theta"] == 100.0


def test_a_theta_beside_the_text_model_is_read_by_nothing():
    config = {"model_type": "gemma3", "text_config": tiny(model_type="gemma3_text"), "rope_theta": 900.0}
    with pytest.raises(ConversionError, match=r"rope_theta=900\.0 beside text_config"):
        import_config(config)
