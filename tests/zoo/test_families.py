"""`zoo families`: what is known, told from the converters themselves."""

import json

import pytest
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from conversion import import_config, known_families
from conversion.engine.catalog import catalog, concepts
from conversion.engine.registry import family_of, file_name, is_known, known_name, model_type_of
from conversion.engine.text_models import REFUSED


@pytest.fixture(scope="module")
def found():
    return catalog()


def test_every_family_is_there_under_the_name_its_files_have(found):
    families = found["families"]
    assert sorted(map(file_name, families)) == known_families()
    of_transformers = [name for name in families if "-" in name and not family_of(name).config_class]
    assert of_transformers == [name for name in CONFIG_MAPPING_NAMES if name in families and "-" in name]
    assert "nemotron-nas" in families
    assert all(facts["models"] for facts in families.values())
    assert {name for name, facts in families.items() if facts["wrapper"]} == {
        name for name in families if family_of(name).section
    }


def test_concepts_are_what_the_converter_sets(found):
    families = found["families"]
    assert families["llama"]["concepts"] == {}
    assert families["deepseek_v3"]["concepts"]["attention_type"] == "latent"
    assert families["gemma3_text"]["concepts"]["layer_types"] == ["sliding_attention", "full_attention"]
    theirs = CONFIG_MAPPING["mixtral"]()
    assert families["mixtral"]["concepts"]["num_experts"] == theirs.num_local_experts
    assert concepts("qwen3_5") == concepts("qwen3_5_text")


def test_a_wrapper_that_is_listed_converts_by_its_default(found):
    assert {"llava", "qwen2_5_vl", "internvl", "voxtral"} <= set(found["wrappers"])
    assert not set(found["wrappers"]) & set(found["families"])
    for name in found["wrappers"]:
        whole = json.loads(CONFIG_MAPPING[name]().to_json_string(use_diff=False))
        assert family_of(model_type_of(whole)).section, name


def parts_of(config, depth=3):
    """The model types of all that a configuration of transformers holds."""
    parts = [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
    parts = [part for part in parts if isinstance(part, PreTrainedConfig)]
    deeper = [one for part in parts if depth for one in parts_of(part, depth - 1)]
    return [part.model_type for part in parts] + deeper


@pytest.mark.long
def test_no_wrapper_of_transformers_is_forgotten(found):
    """Whatever holds a text model that zoo knows, under whichever key, is listed, has a file or is refused by name."""
    answered = {*found["wrappers"], *found["families"], *REFUSED}
    for name in CONFIG_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:
            continue  # a class without defaults says of nothing what it holds
        known = [inner for inner in parts_of(config) if inner and is_known(file_name(known_name(inner)))]
        assert not known or name in answered, (name, known)


def test_the_table_and_one_family(zoo):
    code, out, err = zoo("families")
    assert code == 0 and err == "" and "deepseek_v3" in out and f"{len(known_families())} families." in out
    code, out, _ = zoo("families", "openai-gpt")
    assert code == 0 and "post_norm" in out
    code, out, _ = zoo("families", "llava", "--json")
    assert code == 0 and json.loads(out)["wrapper"] is True


@pytest.mark.parametrize(("name", "said"), [("qwen4", "'qwen"), ("something", "`zoo families` lists")])
def test_an_unknown_one_is_answered_with_the_nearest_three(zoo, name, said):
    for command in (("families", name),):
        code, out, err = zoo(*command)
        assert (code, out) == (1, "") and said in err and len(err) < 200
    with pytest.raises(ValueError, match="is not known") as refused:
        import_config({"model_type": name})
    assert len(str(refused.value)) < 200
