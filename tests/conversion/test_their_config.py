"""What transformers' config classes refuse although zoo can say it, and whose name a refusal gives."""

import json

import pytest
import torch
from random_models import randomize
from safetensors.torch import load_file
from samples import every
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen2Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion import ConversionError, convert, family_of, import_config, load
from conversion.families.shared_common import tiny


def there_and_back(theirs, folder, edit=lambda raw: raw):
    """The largest relative difference of the logits; asserts that everything comes back."""
    source, zoo, back = (folder / name for name in ("source", "zoo", "back"))
    theirs.save_pretrained(source)
    raw = edit(json.loads((source / "config.json").read_text()))
    (source / "config.json").write_text(json.dumps(raw))
    tokens = torch.randint(1, 100, (2, 13))
    with torch.no_grad():
        expected, found = theirs.eval()(tokens).logits, load(source)(tokens).logits
    convert(source, zoo, progress=False)
    convert(zoo, back, to=raw["model_type"], progress=False)
    before, after = (load_file(place / "model.safetensors") for place in (source, back))
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((back / "config.json").read_text()) == raw
    return ((found - expected).abs().max() / expected.abs().max()).item()


def changed_afterwards(config_class, sizes, **late):
    """A config with values its own check refuses."""
    config = config_class(**sizes)
    for name, value in late.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("config_class", every(3, [LlamaConfig, MixtralConfig, Qwen2Config]))
def test_heads_of_a_width_of_their_own_need_not_divide_the_stream(config_class, tmp_path):
    """Kanana 1.5 2.1B: 1792 channels, 24 heads of 128."""
    sizes = tiny(hidden_size=60, **({"num_local_experts": 4} if config_class is MixtralConfig else {}))
    config = changed_afterwards(config_class, sizes, hidden_size=56)
    assert config.hidden_size % config.num_attention_heads
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (72, 56)
    model.config.hidden_size = 60
    differ = there_and_back(model, tmp_path, lambda raw: raw | {"hidden_size": 56})
    assert differ <= 2e-5


def test_heads_that_leave_a_rest_are_refused_where_nothing_says_how_wide_they_are():
    with pytest.raises(ConversionError, match="hidden size .56. is not a multiple .* attention heads .6."):
        import_config({"model_type": "llama"} | tiny(hidden_size=56, head_dim=...))


@pytest.mark.parametrize("name", every(4, ["qwen3", "qwen3_next", "glm_moe_dsa", "exaone4"]))
def test_lists_longer_than_the_layers_are_read_as_far_as_there_are_layers(name, tmp_path):
    """Step 3.5 Flash and EXAONE 4.5 list the layers that predict further tokens too."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**family_of(name).tiny[0]))
    randomize(model)

    def longer(raw):
        lists = {key: raw[key] for key in ("layer_types", "mlp_layer_types") if raw.get(key)}
        assert lists
        return raw | {key: [*value, value[0], value[-1]] for key, value in lists.items()}

    assert there_and_back(model, tmp_path, longer) <= 2e-5


def test_lists_shorter_than_the_layers_are_refused():
    with pytest.raises(ConversionError, match=r"num_hidden_layers. \(3\) must be equal .*layer_types. \(2\)"):
        import_config({"model_type": "qwen3", "layer_types": ["full_attention"] * 2} | tiny())


# Numbers as other kinds of JSON -> the key the sentence must give.
WRONG_KINDS = {
    "torch_dtype": "auto", "dtype": "torch.float33", "eos_token_id": "2", "vocab_size": 101.0, "rms_norm_eps": "tiny",
    "attention_bias": None, "num_attention_heads": 0, "rope_parameters": [1], "rope_scaling": {"rope_type": "yarn"},
    "hidden_act": "no such", "hidden_size": "48",
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG_KINDS)
def test_a_refusal_gives_the_key(key):
    with pytest.raises(ConversionError) as refusal:
        import_config({"model_type": "llama"} | tiny(**{key: WRONG_KINDS[key]}))
    assert key.removeprefix("torch_") in str(refusal.value)


# Family, key, value -> what ZooConfig would call it, or no name at all.
CALLED_OTHERWISE = [
    ("cohere", "logit_scale", 0.0, "division by zero"), ("dbrx", "max_seq_len", 0, "max_position_embeddings=0"),
    ("deepseek_v2", "qk_rope_head_dim", 0, "qk_rope_head_dim=0"),
    ("biogpt", "hidden_dropout_prob", 1.0, "embedding_dropout=1.0"),
    ("gemma4_text", "top_k_experts", 0, "num_experts_per_tok=0"),
]  # fmt: skip


@pytest.mark.parametrize("name, key, value, ours", CALLED_OTHERWISE)
def test_a_refusal_gives_the_key_of_the_file(name, key, value, ours):
    raw = CONFIG_MAPPING[name](**family_of(name).tiny[0]).to_dict() | {key: value}
    with pytest.raises(ConversionError) as refusal:
        import_config(raw)
    assert f"{key}={value!r}" in str(refusal.value) and ours in str(refusal.value)


def test_a_refusal_of_a_zoo_folder_gives_the_key():
    raw = import_config({"model_type": "llama"} | tiny()).to_dict()
    with pytest.raises(ConversionError, match="dtype='auto' cannot be used"):
        import_config(raw | {"dtype": "auto"})


def test_tables_that_no_layer_turns_by_are_not_the_default_rotation():
    """A field that no layer reads may be left out of a file's only where its default is not read either."""
    tables = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None}
    raw = {"model_type": "cohere_compass_text", "layer_types": ["full_attention"] * 2, "rope_parameters": tables}
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "vocab_size": 101}
    config = import_config(raw | sizes | {"sliding_window": None, "eos_token_id": 1})
    assert [config.rope_table_of(index) for index in range(2)] == [None, None]
