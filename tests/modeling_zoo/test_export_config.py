"""`configuration_zoo.py` of a model folder: the package's config, with what one model uses."""

import importlib.util
import json
import subprocess
import sys
import warnings

import pytest
from huggingface_hub.errors import StrictDataclassError
from places import ROOT
from random_models import their_class_config

from configuration_zoo.field_settings import described, nested, settings_of, spread
from configuration_zoo.presets import PRESETS
from conversion import family_of
from conversion.engine.config_bridge import import_config
from conversion.engine.registry import known_families
from modeling_zoo import ZooConfig
from modeling_zoo.export import code
from modeling_zoo.export_config import exported_configuration

REFUSED = (ValueError, StrictDataclassError)
FAMILIES = [name for name in known_families() if family_of(name).tiny]
SIZES = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
LATENT = {
    **SIZES, "attention_type": "latent", "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "scoring_func": "sigmoid", "n_shared_experts": 1, "moe_intermediate_size": 16,
    "use_score_correction_bias": True,
}  # fmt: skip
MIXED = {**SIZES, "layer_types": "2*linear_attention, full_attention", "linear_attention_type": "gated_delta_net"}
NESTED = {
    **SIZES, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 7,
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
}  # fmt: skip
CONFIGS = {
    "plain": SIZES,
    "latent": LATENT,
    "mixed": MIXED,
    "nested": NESTED,
    "weighted": {**SIZES, "block_type": "post_norm", "residual_factors": {"full_attn_alpha": 1.2, "mlp_beta": 0.9}},
    "old": {**SIZES, "position_embedding_type": "learned", "norm_type": "layer_norm", "gated_mlp": False},
    "state_space": {
        **SIZES,
        "layer_types": ["linear_attention"] * 3,
        "linear_attention_type": "mamba2",
        "linear_value_head_dim": 12,
    },
}  # fmt: skip


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """The class in the file that is made for a config."""

    def load(config):
        path = tmp_path / "configuration_zoo.py"
        path.write_text(exported_configuration(config), encoding="utf-8")
        name = f"exported_configuration_{len(sys.modules)}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module.ZooConfig

    return load


def tiny(name):
    family = family_of(name)
    with warnings.catch_warnings(action="ignore"):
        theirs = their_class_config(name, family, family.tiny[0])
        config = import_config(json.loads(theirs.to_json_string(use_diff=False)))
    if config.is_heterogeneous:
        pytest.skip("its layers differ in numbers: its folder has the whole class")
    return config


def said(config):
    return json.loads(config.to_json_string())


def agree(ours, theirs):
    """Every field has the package's value, and config.json the package's bytes."""
    values = {name: repr(getattr(theirs, name)) for name in described(ZooConfig)}
    assert {name: repr(getattr(ours, name, "missing")) for name in values} == values
    assert ours.to_json_string() == theirs.to_json_string()
    for name in ("base_model_tp_plan", "base_model_ep_plan", "qk_head_dim", "logit_scale", "is_causal"):
        assert getattr(ours, name, None) == getattr(theirs, name, None), name


def outcome(build, *arguments, **fields):
    """What building a config comes to: its values, or its refusal."""
    try:
        config = build(*arguments, **fields)
    except Exception as error:
        return str(error)
    return {name: repr(getattr(config, name)) for name in described(ZooConfig)}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_of_a_family_is_the_package_s(name, exported):
    config = tiny(name)
    agree(exported(config).from_dict(said(config)), ZooConfig.from_dict(said(config)))


@pytest.mark.sampled(9)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_the_config_of_a_preset_is_the_package_s(name, small, exported):
    config = ZooConfig.preset(name, small)
    agree(exported(config).from_dict(said(config)), ZooConfig.from_dict(said(config)))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_layers_are_those_of_the_package(name, exported):
    config = ZooConfig(**CONFIGS[name])
    own, everywhere = exported(config), said(config)
    for depth in (1, 2):
        ours, theirs = (one.from_dict(dict(everywhere), num_hidden_layers=depth) for one in (own, ZooConfig))
        # What no layer is left to read is None in the package, and has its one value here.
        groups = settings_of(ZooConfig)
        values, named = spread(theirs.to_dict(), groups), spread(everywhere, groups)
        read = [name for name in values if values[name] not in (None, {}) and name in named]
        assert {name: repr(getattr(ours, name)) for name in read} == {
            name: repr(getattr(theirs, name)) for name in read
        }
        assert ours.layer_types == theirs.layer_types and ours.mlp_layer_types == theirs.mlp_layer_types
        own.from_dict(said(ours))
        assert ZooConfig.from_dict(said(ours)).mlp_layer_types == ours.mlp_layer_types


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_may_change(name, exported):
    """Half of each number and twice of it, and what no field may be: as in the package, refusals included."""
    config = ZooConfig(**CONFIGS[name])
    own, everywhere = exported(config), said(config)
    changed, values = 0, spread(everywhere, settings_of(ZooConfig))
    for field, value in values.items():
        carried = field.partition(".")[0] in own.__dataclass_fields__
        if isinstance(value, bool) or not isinstance(value, int | float) or not carried:
            continue
        for other in (value * 2, max(value // 2, 1), -1, float("nan"), "many"):
            ours, theirs = (outcome(one, **nested({**values, field: other})) for one in (own, ZooConfig))
            assert ours == theirs, (field, other)
            changed += isinstance(ours, dict)
    assert changed > 8


@pytest.mark.parametrize("name", ["plain", "latent"])
def test_what_only_a_run_reads_may_change(name, exported):
    own, everywhere = exported(ZooConfig(**CONFIGS[name])), said(ZooConfig(**CONFIGS[name]))
    for fields in (
        {"attention_dropout": 0.1, "residual_dropout": 0.2},
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarm", "rope_theta": 1e4}},
        {"output_z_loss_coef": 1e-4, "loss_chunk_size": 7},
        {"tie_word_embeddings": True},
        {"use_cache": False, "eos_token_id": [1, 2]},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 1e-5},
    ):
        ours, theirs = (outcome(one.from_dict, dict(everywhere), **fields) for one in (own, ZooConfig))
        assert ours == theirs, fields


def test_what_the_folder_has_no_code_for_is_refused(exported):
    """Every flag of zoo, on a plain folder: taken at the value it stands at, refused at any other."""
    config = ZooConfig(**SIZES)
    own, refused = exported(config), 0
    for name, field in described(ZooConfig).items():
        if name in own.__dataclass_fields__:
            continue
        other = {"bool": True, "str": "some_word"}.get(str(field.type).split(" ")[0], 3)
        other = not getattr(config, name) if isinstance(getattr(config, name), bool) else other
        group, _, key = name.partition(".")
        with pytest.raises(REFUSED, match="zoo export FOLDER --all") as error:
            own(**SIZES, **{group: {key: other} if key else other})
        assert str(error.value).startswith(f"{name}={other!r} ") and str(error.value).count(". ") == 0
        ours = own(**SIZES, **{group: {key: getattr(config, name)} if key else getattr(config, name)})
        assert getattr(ours, name) == getattr(config, name)
        with pytest.raises(REFUSED, match="zoo export FOLDER --all"):
            setattr(ours, name, other)
        refused += 1
    assert refused > 100


def test_another_word_of_a_concept_that_is_there_is_refused(exported):
    own, everywhere = exported(ZooConfig(**LATENT)), said(ZooConfig(**LATENT))
    for name, other in {
        "attention_type": "grouped_query",
        "scoring_func": "softmax",
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "use_score_correction_bias": False,
    }.items():
        with pytest.raises(REFUSED, match="zoo export FOLDER --all"):
            own.from_dict({**everywhere, name: other})
    # A config.json that leaves the flag out means the package's default, for which the code is not there.
    for name in ("attention_type", "scoring_func", "q_lora_rank"):
        with pytest.raises(REFUSED, match="zoo export FOLDER --all"):
            own.from_dict({key: value for key, value in everywhere.items() if key != name})


def test_a_number_of_a_dict_is_carried_and_the_other_keys_are_not(exported):
    config = ZooConfig(**CONFIGS["weighted"])
    own, everywhere = exported(config), said(config)
    factors = everywhere["residual_factors"]
    for given in ({"residual_factors": {**factors, "mlp_beta": 0.5}}, {"residual_factors.mlp_beta": 0.5}):
        other = own.from_dict({**everywhere, **given})
        assert other.residual_factors == {**config.residual_factors, "mlp_beta": 0.5}
    with pytest.raises(REFUSED, match="residual_factors.mlp_alpha=0.5 .*zoo export FOLDER --all"):
        own.from_dict({**everywhere, "residual_factors": {**factors, "mlp_alpha": 0.5}})
    for left in ({"mlp_beta": 0.9}, {}):
        with pytest.raises(REFUSED, match="residual_factors.full_attn_alpha=None .*zoo export FOLDER --all"):
            own.from_dict({**everywhere, "residual_factors": left})


def test_an_unknown_name_is_refused_as_in_the_package(exported):
    own = exported(ZooConfig(**SIZES))
    for name in ("hiden_size", "no_such_field", "embeding_norm"):
        ours, theirs = (outcome(one, **SIZES, **{name: 3}) for one in (own, ZooConfig))
        assert ours == theirs and "is not a field" in ours


def test_a_pattern_over_layers_is_read_where_layers_differ(exported):
    own = exported(ZooConfig(**MIXED))
    for layers in ("3*linear_attention, full_attention", 4, 2):
        fields = {**MIXED, "num_hidden_layers": 4, "layer_types": layers}
        assert own(**fields).layer_types == ZooConfig(**fields).layer_types


def test_an_attribute_is_checked_when_it_is_set(exported):
    config = exported(ZooConfig(**SIZES))(**SIZES)
    with pytest.raises(REFUSED, match="hidden_size=-3 must be greater than 0"):
        config.hidden_size = -3
    config.rms_norm_eps = 1e-3
    assert config.norm_eps == 1e-3


def test_a_lowered_depth_is_saved_as_one(exported, tmp_path):
    own = exported(ZooConfig(**LATENT))
    config = own.from_dict(said(ZooConfig(**LATENT)))
    config.num_hidden_layers = 2
    config.save_pretrained(tmp_path)
    assert own.from_pretrained(tmp_path).mlp_layer_types == ["dense", "sparse"]


def test_sizes_change_no_byte_of_the_code():
    small, large = (ZooConfig(**{**LATENT, "hidden_size": width, "kv_lora_rank": width}) for width in (24, 48))
    assert exported_configuration(small) == exported_configuration(large)


def test_the_code_is_formatted(tmp_path):
    for name, fields in CONFIGS.items():
        (tmp_path / f"{name}.py").write_text(exported_configuration(ZooConfig(**fields)), encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "format", "--check", "--config", ROOT / "pyproject.toml", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "most"), [("plain", 730), ("latent", 1060), ("mixed", 1140)])
def test_a_folder_carries_a_part_of_the_config(name, most):
    text = code(ZooConfig(**CONFIGS[name]))["configuration_zoo.py"]
    assert len(text.splitlines()) <= most
    whole = code()["configuration_zoo.py"]
    assert len(text.splitlines()) < len(whole.splitlines()) / 3


def test_a_dict_of_numbers_is_checked_in_a_folder(exported):
    """A kind of value that few models have."""
    config = ZooConfig(**SIZES, initializer={"by_name": {"o_proj": 0.01}})
    theirs, given = exported(config), {**SIZES, "initializer": {"by_name": {"o_proj": 0.01}}}
    assert theirs(**given).initializer["by_name"] == {"o_proj": 0.01}
    for wrong, said in (
        (3, "=3 must be a dict of numbers"),
        ({"o_proj": -1}, r"\['o_proj'\]=-1 must be a finite number"),
    ):
        with pytest.raises(StrictDataclassError, match=f"initializer.by_name{said}"):
            theirs(**given | {"initializer": {"by_name": wrong}})
